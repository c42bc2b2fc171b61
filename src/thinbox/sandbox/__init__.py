"""The sandbox around a tenant's calls: plans, and the calls that are answered outside the kernel."""
