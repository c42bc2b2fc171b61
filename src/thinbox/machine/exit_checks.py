"""Unicorn's look, behind every load and store, at whether somebody wants the CPU to stop: off where none may.

Why it exists: the look is a call, and costs a tenth of a boot. It serves hooks on memory, which here stop nothing
(`tracing_hooks`), and hooks on instructions, of which a boot has none. Unicorn has a switch for it
(`no_exit_request` in its `uc_struct`, used where ARM forbids a stop), but no call that turns it.

Rules of this file:
- The switch counts when a block is translated. Whoever turns it has the translations flushed.
- Blocks still look once, at their start. So a stop asked for by a device or a hypercall comes a block later
  at most, and nothing that stops at an exact place may be in use while the looks are off.
- Where the switch is, is read from the code of the one function that obeys it; if that is not the code
  known, the looks stay on: slower, never wrong.
"""

import ctypes
import re

import unicorn.unicorn_py3.unicorn as binding

_FUNCTION = "check_exit_request_x86_64"
_CODE_BYTES = 32
_CODE = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?"  # endbr64
    rb"\x48\x8b\xb7(?P<context>....)"  # mov uc(%rdi), %rsi
    rb"\x80\xbe(?P<switch>....)\x00"  # cmpb $0, no_exit_request(%rsi)
    rb"(?:\x74.\xc3|\x75.|\x0f\x85....)",  # je on; ret | jne out
    re.DOTALL,
)


def find_exit_check_switch() -> int | None:
    """Return the offset of `no_exit_request` in Unicorn's handle, None if this Unicorn's code is another."""
    function = getattr(binding.uclib, _FUNCTION, None)
    if function is None:
        return None
    code = ctypes.string_at(ctypes.cast(function, ctypes.c_void_p), _CODE_BYTES)
    found = _CODE.match(code)
    return None if found is None else int.from_bytes(found["switch"], "little")


class ExitChecks:
    """The switch of one engine; `handle` is the host address of its `uc_struct`."""

    def __init__(self, handle: int) -> None:
        offset = find_exit_check_switch()
        self._switch = None if offset is None else ctypes.c_uint8.from_address(handle + offset)
        if self._switch is not None and self._switch.value != 0:
            self._switch = None

    @property
    def skipped(self) -> bool:
        """Whether blocks are translated without looks."""
        return self._switch is not None and self._switch.value == 1

    def skip(self) -> None:
        """Translate without looks from now on, where that can be done."""
        if self._switch is not None:
            self._switch.value = 1

    def restore(self) -> bool:
        """Translate with looks again; return whether translations without them may exist, and must be flushed."""
        skipped = self.skipped
        if skipped and self._switch is not None:
            self._switch.value = 0
        return skipped
