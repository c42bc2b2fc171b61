"""Says where the user's own code failed: a policy, a handler of a plan.

Why it exists: whoever writes ten lines of policy wants the line that is wrong, not forty of thinbox's.

Rules of this file: one line; the exception itself stays the cause, for `thinbox --debug`.
"""

import traceback

from thinbox.errors import ThinboxError, UserCodeError


def mistake(what: str, error: Exception) -> ThinboxError:
    """Return what to raise from `error`, which `what` (a policy, a handler, and what it was asked) let out.

    An error of thinbox's own is returned as it is.
    """
    if isinstance(error, ThinboxError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return UserCodeError(f"{what} failed{where}: {kind}: {said}" if said else f"{what} failed{where}: {kind}")
