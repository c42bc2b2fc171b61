"""`python -m thinbox`."""

from thinbox.cli import main

if __name__ == "__main__":
    main()
