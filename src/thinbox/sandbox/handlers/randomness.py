"""Random bytes from a seed: the same in every run of the same plan.

Why it exists: a deterministic sandbox must not ask a kernel for entropy. The bytes are unpredictable to nobody who
knows the seed; they are for replaying, not for keys.
"""

import errno
import hashlib

from thinbox.sandbox.emulation import CallError, EmulatedCall, Handler

_NONBLOCK, _RANDOM, _INSECURE = 1, 2, 4
"""GRND_* (include/uapi/linux/random.h)."""
_CHUNK_BYTES = 64
LONGEST_BYTES = 1 << 20
"""Bytes one call gives; a longer one gets a short count, as an interrupted one of the kernel's."""


class RandomStream:
    """SHAKE-256 of the seed and a counter, in blocks of 64 bytes."""

    def __init__(self, seed: int) -> None:
        self._seed, self._count = str(seed).encode(), 0

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes without using them up."""
        blocks = -(-size // _CHUNK_BYTES)
        out = b"".join(
            hashlib.shake_256(b"thinbox getrandom %s %d" % (self._seed, self._count + i)).digest(_CHUNK_BYTES)
            for i in range(blocks)
        )
        return out[:size]

    def skip(self, size: int) -> None:
        """Use `size` bytes up (whole blocks)."""
        self._count += -(-size // _CHUNK_BYTES)


def getrandom(call: EmulatedCall) -> int:
    """`ssize_t getrandom(void *, size_t, unsigned flags)`."""
    flags, size = call.args[2] & 0xFFFFFFFF, min(call.args[1], LONGEST_BYTES)
    both = _RANDOM | _INSECURE
    if flags & ~(_NONBLOCK | both) or flags & both == both:
        raise CallError(errno.EINVAL)
    stream = call.services.random
    call.write(call.args[0], stream.peek(size))
    stream.skip(size)
    return size


RANDOMNESS: dict[str, Handler] = {"getrandom": getrandom}
"""By name of the call."""
