"""Attacks: presumed kernel bugs, used against a tenant's own calls."""
