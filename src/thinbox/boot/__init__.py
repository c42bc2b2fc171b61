"""Boot: a kernel image and a machine become a guest that waits, in user space, for its first tenant."""
