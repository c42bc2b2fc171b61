"""The exceptions thinbox raises, each with the exit status the command line gives it.

A killed tenant is a result, never an exception. An exception here means that the input is wrong
(`InputError`, exit status 2) or that our own machine failed (`MachineError`, exit status 3). Every
message is one line: what is wrong, and what to do about it.
"""

from collections.abc import Iterable

EXIT_INPUT = 2
EXIT_MACHINE = 3
EXIT_KILLED = 137
EXIT_INTERRUPTED = 130


class ThinboxError(Exception):
    """Base of everything thinbox raises on purpose; `exit_code` is the process's exit status."""

    exit_code = EXIT_MACHINE


class InputError(ThinboxError):
    """What the user gave cannot be used: a file, an option, a program name, a policy."""

    exit_code = EXIT_INPUT


class KernelImageError(InputError):
    """A kernel image (bzImage, vmlinux, .deb) that cannot be read; the only exception its parsers raise."""


class RootfsError(InputError):
    """A root file system (directory or tar archive) that cannot be put into the guest."""


class SourceError(InputError):
    """A kernel or package could not be found or fetched."""


class UserCodeError(InputError):
    """A policy or a handler of the user's made a mistake; its own exception is the cause."""


class TrustError(InputError):
    """What thinbox would execute or believe (the cache, a policy, a profile) is in the hands of others too."""


class CacheError(ThinboxError):
    """The cache folder cannot be written (full disk, permissions)."""


class MachineError(ThinboxError):
    """The emulated machine failed: an engine error, a guest panic, a halt with nothing to come."""


class BootError(MachineError):
    """The kernel did not reach user space; the message ends with what it printed last."""


class MissingFactError(MachineError, KeyError):
    """The kernel lacks something that a feature needs, or keeps it in a way that is not known.

    A `KeyError`, too, for whoever looks up one symbol or member and can do without.
    """

    def __str__(self) -> str:
        """Return the one line, not its repr as a KeyError does."""
        return str(self.args[0]) if self.args else ""

    @classmethod
    def of(cls, feature: str, missing: list[str], disables: str) -> "MissingFactError":
        """Return the error of `feature`, which lacks all of `missing`; `disables` says what does not work for it."""
        return cls(f"this kernel's {feature} cannot be read: it has no {', no '.join(missing)}; so {disables}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" for the known word most like `word`, "" if none is."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
