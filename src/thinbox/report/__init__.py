"""Reports: a record in, text or files out."""
