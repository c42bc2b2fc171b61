"""Every system call on its own, isolated and not, from a clean snapshot: what it touches, what is killed wrongly."""
