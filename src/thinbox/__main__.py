"""`python -m thinbox`."""

import sys

# Python puts the current folder first on the path, and what lies there would be imported for what thinbox needs; the
# console script has no such entry. What of the folder is loaded, and how, is said in `host.code`. Here `os` could be a
# file of the folder's; `posix` is built in.
if __name__ == "__main__" and not sys.flags.safe_path:
    import posix

    try:
        here = posix.getcwd()
    except OSError:  # it was removed
        here = ""
    if sys.path[:1] in ([""], [here]):
        del sys.path[0]

from thinbox.cli import main

if __name__ == "__main__":
    main()
