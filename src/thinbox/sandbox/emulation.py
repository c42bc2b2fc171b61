"""What a handler of one's own is written with, and how it is loaded by name.

Why it exists: a plan names handlers of its user's (`emulate = "package.module:function"`); this module is all that
such a handler imports.
"""

from thinbox.errors import InputError
from thinbox.host.code import load_object
from thinbox.sandbox.call_error import CallError, NotOursError
from thinbox.sandbox.emulated_call import EmulatedCall, Handler

__all__ = ["CallError", "EmulatedCall", "Handler", "NotOursError", "load_handler"]


def load_handler(spec: str) -> Handler:
    """Return the function `package.module:function`; InputError if it is not there (`host.code` says where)."""
    handler = load_object(spec, "the handler")
    if not callable(handler):
        raise InputError(f"the handler {spec} is not a function of one call")
    return handler  # type: ignore[no-any-return]
