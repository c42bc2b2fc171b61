"""A session: one restored machine, one tenant, one policy; from the first call to the exit status."""
