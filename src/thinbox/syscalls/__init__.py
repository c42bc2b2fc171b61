"""The system calls of the guest: numbers, names, arguments, and the operations of io_uring."""
