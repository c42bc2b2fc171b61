"""What `check()` raises for a result that is not what it should be."""

from thinbox.errors import EXIT_INPUT, ThinboxError


class RunError(ThinboxError):
    """A program that did not end well: killed by thinbox, not executable, or with a status that is not 0.

    `status` is its exit status.
    """

    exit_code = EXIT_INPUT

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


__all__ = ["RunError"]
