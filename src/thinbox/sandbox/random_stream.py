"""Random bytes from a seed: the same in every run of the same plan.

Why it exists: a deterministic sandbox must not ask a kernel for entropy. The bytes are unpredictable to nobody who
knows the seed; they are for replaying, not for keys.
"""

import hashlib

_CHUNK_BYTES = 64


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
