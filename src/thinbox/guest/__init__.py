"""What lives inside the guest, and how it gets there: agent, root file system, console, tasks."""
