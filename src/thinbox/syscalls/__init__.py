"""The system calls of the guest: numbers, names, arguments, and records of each call made."""
