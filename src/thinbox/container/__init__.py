"""Container images: what people have is read, checked, merged, and handed on as a root file system and a launch.

Nothing here writes to the host's disk or runs anything; `image.load_image` is the entry.
"""
