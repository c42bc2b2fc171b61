"""Measurements of thinbox itself and of what it studies; run from the checkout."""
