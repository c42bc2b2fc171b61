"""The host's own files: which are believed and executed, and how those that strangers wrote or name are opened."""
