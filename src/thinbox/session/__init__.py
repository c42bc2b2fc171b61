"""A session: one restored machine, with one tenant or several; from the first call to the exit status."""
