"""thinbox: run a program on a real kernel, every system call on its own reduced page table."""

__version__ = "0.1.0"
