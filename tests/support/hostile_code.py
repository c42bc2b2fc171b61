"""Programs and page-table words of an attacker's, out of a seed: pure functions, so a failure is named by its seed.

A program is x86-64 user code of a few hundred bytes, biased to what an emulator seldom sees: wrong lengths, prefixes
without end, far transfers, segments, ports, stores to odd places, and its own bytes rewritten. It may do anything;
whoever runs it bounds its time.
"""

import random
import struct
from collections.abc import Callable, Sequence

LONGEST = 1024
"""Most bytes of a program."""

PREFIXES = (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65)

ODD = tuple(
    bytes.fromhex(text)
    for text in (
        # stops and privileged ones
        "f4 fa fb 0f09 0f08 0f06 0f30 0f32 0f33 0f31 0f01f9 0fa2 0f05 0f07 480f07 0f34 0f35 480f35 0faa 0f0b 0fb9 0fff "
        "0f01c1 0f01c2 0f01c3 0f01c4 0f01c8 0f01c9 0f01ca 0f01cb 0f01d0 0f01d1 0f01d4 0f01d5 0f01d6 "
        "0f01d8 0f01d9 0f01da 0f01db 0f01dc 0f01dd 0f01de 0f01df 0f01ee 0f01ef 0f01f8 0f01fa 0f01fb 0f01fc 0f37 0f77 "
        # descriptor tables and control registers, debug registers
        "0f0107 0f010f 0f0117 0f011f 0f0127 0f0137 0f013f 0f0007 0f000f 0f0017 0f001f 0f0027 0f002f "
        "0f20c0 0f20d8 0f20e0 440f20c0 0f22c0 0f22d8 0f22e0 440f22c0 0f20c8 0f22c8 0f21c0 0f21f8 0f23c0 0f23f8 0f21e0 "
        "0f24c0 0f26c0 "
        # interrupts and returns
        "cc cd03 cd04 cd01 cd80 cd0e cd0d cd08 cd02 cdff cd20 ce f1 cf 48cf 66cf cb 48cb 66cb ca0800 c3 66c3 c20800 "
        # far transfers through memory and immediate ones (invalid in 64-bit mode)
        "ff1f 48ff1f 66ff1f ff2f 48ff2f 66ff2f 9a00000000 3300 ea00000000 2300 "
        # ports, string forms
        "e4 64 e5 64 e6 80 e7 80 ec ed 66ed ee ef 66ef 6c 6d 666d 6e 6f 666f f36c f36d f36e f36f "
        "a4 48a5 f3a4 f348a5 f2a6 f3a6 aa 48ab f3aa f348ab ae f2ae ac 67a4 6766a5 "
        # segments
        "8ed8 8ec0 8ee0 8ee8 8ed0 8ec8 8cd8 0fa0 0fa1 0fa8 0fa9 0fb207 0fb407 0fb507 0f02c1 0f03c1 0f00e1 0f00e9 "
        "f30faec0 f30faec8 f30faed0 f30faed8 f3480faed0 f3480faed8 "
        # state of the FPU and vector units
        "0fae07 480fae07 0fae0f 480fae0f 0fae17 0fae1f 0fae27 0fae2f 0fae37 0fae3f 0faee8 0faef0 0faef8 0fc727 0fc72f "
        "dd37 dd27 d937 d927 9b dbe3 dbe2 d9f0 d9f3 d9f8 d9fa d9fb d9fc d9fe d9ff dfe0 db3f db2f df27 df37 d9d0 d9e1 d9ee "
        "0f77 660f6f07 660f7f07 0f2807 0f2907 f30f6f07 f20f1107 0f1107 660fe707 0fe707 0fc307 660ff7c1 0ff7c1 0f5807 "
        "f20f5807 f30f5c07 0f5ec1 0fc6c111 660f3a0fc101 660f3840c1 660f383007 c5f877 c5f86f07 c5fe6f07 62f17c4810 07 "
        # locked and compare-exchange forms
        "f00107 f0480107 f0ff07 f0480fc107 f00fb10f f0480fb10f 0fc70f 480fc70f f00fc70f f0480fc70f 8707 488707 f08707 "
        "f001c0 f090 f00fa2 f0f4 0fba2f07 f00fba2f07 0fc7f0 0fc7f8 480fc7f0 f30fb8c1 f30fbcc1 f30fbdc1 0f38f007 0f38f107 "
        # division, stack and flags
        "f6f0 f7f0 48f7f0 48f7f8 f6f8 f737 48f737 9c 9d 669c 669d 60 61 27 2f 37 3f d4 d5 82 d6 0e 1e 06 c4 c5 62 "
        "c8000000 c8ffff1f c8000101 c9 5c 54 8f00 ff37 ff77 f8 50 58 16 17 1f e3fe e1fe e0fe "
        # loads and stores by RDI and friends, wide displacements
        "8807 668907 8907 488907 8a07 8b07 488b07 c60700 48c70700000000 48ff07 48f717 c0 0700 48c12707 488b87ff0f0000 "
        "488987fd0f0000 a10000000000000000 a3 4889 6467488907 65488b07 64488907 480fc30f 0f0d07 0f1807 0f1f07 0f0d0f "
        "0f01 0f 0f38 0f3a f3 f2 66 67 48 4f f2f3f0 "
        # jumps
        "ebfe eb00 e900000000 e800000000 ffe7 ffd7 ffe0 ff27 ff17 48ffe7 66ffe7 f2ffe7 7500 0f8400000000 66e90000"
    ).split()
)
"""Instructions, whole and cut short, that hide an emulator's mistakes."""

PLACES = (
    0x0,
    0x1,
    0xFFF,
    0xFEE00000,
    0xFEC00000,
    0xA0000,
    0xFFFFF,
    0xFFFF_FFFF,
    0x1_0000_0000,
    0x7FFF_FFFF_FFFF,
    0x7FFF_FFFF_F000,
    0x8000_0000_0000,
    0xFFFF_7FFF_FFFF_FFFF,
    0xFFFF_8000_0000_0000,
    0xFFFF_8880_0000_0000,
    0xFFFF_FFFF_8000_0000,
    0xFFFF_FFFF_FFFF_FFFF,
    0xFFFF_FFFF_FFFF_FFF8,
    0xFFFF_FFFF_FF60_0000,
    0xDEAD_BEEF_DEAD_BEEF,
)
"""Addresses at the edges of what there is."""

SELECTORS = (0, 1, 3, 7, 8, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x30, 0x3B, 0x40, 0x43, 0x7B, 0xFFFF, 0xFFF8, 0x0F, 0x17)

REGISTERS = 16


def mov(register: int, value: int) -> bytes:
    """`movabs`, for all sixteen registers."""
    return bytes((0x48 | register >> 3, 0xB8 | register & 7)) + struct.pack("<Q", value & (1 << 64) - 1)


def random_program(seed: int, places: Sequence[int] = (), *, ports: bool = True) -> bytes:
    """Return the code of program `seed`, at most LONGEST bytes; `places` are addresses worth touching besides the usual.

    Without `ports` no whole instruction for ports is chosen (a random byte may still be one).
    """
    chooser = random.Random(f"hostile {seed}")
    known = (*PLACES, *places, *places, *places)
    length = chooser.choice((8, 40, 120, 400))
    code = b"".join(mov(register, chooser.choice(known)) for register in (7, 6, *chooser.sample(range(REGISTERS), 3)))
    pieces: tuple[tuple[int, Callable[[random.Random, Sequence[int]], bytes]], ...] = (
        (8, _odd),
        (2, _prefixed),
        (2, _noise),
        (2, _point),
        (1, _segment),
        (1, _far),
        (1, _rewrite),
        (1, _flags),
        (1, _long),
        (1, _call),
    )
    weights, makers = [weight for weight, _ in pieces], [maker for _, maker in pieces]
    while len(code) < length:
        piece = chooser.choices(makers, weights)[0](chooser, known)
        if not ports and piece[:1] and piece.lstrip(bytes(PREFIXES))[:1] in _PORT_OPCODES:
            continue
        code += piece
    return code[:LONGEST]


_PORT_OPCODES = frozenset(bytes((opcode,)) for opcode in (*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0)))


def _odd(chooser: random.Random, _places: Sequence[int]) -> bytes:
    return chooser.choice(ODD)


def _prefixed(chooser: random.Random, _places: Sequence[int]) -> bytes:
    prefixes = bytes(chooser.choice(PREFIXES) for _ in range(chooser.choice((1, 2, 3, 13, 14, 15, 20))))
    rex = bytes((0x40 | chooser.getrandbits(4),)) if chooser.random() < 0.3 else b""
    return prefixes + rex + chooser.choice(ODD)


def _noise(chooser: random.Random, _places: Sequence[int]) -> bytes:
    return chooser.randbytes(chooser.randrange(1, 16))


def _point(chooser: random.Random, places: Sequence[int]) -> bytes:
    """Point registers somewhere, and touch it in a random way (ModRM of one or two operands)."""
    base = chooser.randrange(REGISTERS)
    opcode = chooser.choice(
        (
            b"\x88",
            b"\x89",
            b"\x8a",
            b"\x8b",
            b"\x86",
            b"\x87",
            b"\x01",
            b"\x11",
            b"\x31",
            b"\xff",
            b"\xfe",
            b"\xf7",
            b"\xc6",
        )
    )
    modrm = chooser.choice((0x00, 0x40, 0x80)) | chooser.randrange(8) << 3 | base & 7
    rex = bytes((0x40 | chooser.getrandbits(1) << 3 | base >> 3,))
    return mov(base, chooser.choice(places) + chooser.choice((0, 0, 1, -1, -4, 4093))) + rex + opcode + bytes((modrm,))


def _segment(chooser: random.Random, _places: Sequence[int]) -> bytes:
    """Load a segment register, or look at a descriptor."""
    load = chooser.choice(
        (b"\x8e\xd8", b"\x8e\xc0", b"\x8e\xe0", b"\x8e\xe8", b"\x8e\xd0", b"\x0f\x02\xc8", b"\x0f\x03\xc8")
    )
    return b"\x66\xb8" + struct.pack("<H", chooser.choice(SELECTORS)) + load


def _far(chooser: random.Random, places: Sequence[int]) -> bytes:
    """A far jump, call or return to some selector: push it, push an address, `retf`, `iret`."""
    selector, target = chooser.choice(SELECTORS), chooser.choice(places)
    push = b"\x68" + struct.pack("<I", selector) + mov(0, target) + b"\x50"
    if chooser.random() < 0.5:
        return push + chooser.choice((b"\x48\xcb", b"\xcb", b"\xff\x1c\x24", b"\xff\x2c\x24", b"\x48\xff\x2c\x24"))
    frame = b"\x68" + struct.pack("<I", chooser.choice(SELECTORS)) + mov(1, chooser.choice(places)) + b"\x51"
    frame += b"\x68" + struct.pack("<i", chooser.getrandbits(31))
    return frame + push + chooser.choice((b"\x48\xcf", b"\xcf"))


def _rewrite(chooser: random.Random, _places: Sequence[int]) -> bytes:
    """Store over the code that follows: lea rax, [rip + n]; mov dword [rax], imm32."""
    at = struct.pack("<i", chooser.randrange(-64, 64))
    return (
        b"\x48\x8d\x05"
        + at
        + b"\xc7\x00"
        + chooser.choice((chooser.randbytes(4), b"\x90\x90\x90\x90", b"\x0f\x0b\xf4\xcc"))
    )


def _flags(chooser: random.Random, _places: Sequence[int]) -> bytes:
    """Load RFLAGS: single-step, alignment checks, nested task, IOPL, direction, virtual 8086."""
    bits = chooser.choice(
        (1 << 8, 1 << 18, 1 << 14, 3 << 12, 1 << 10, 1 << 17, 1 << 9, 1 << 16, chooser.getrandbits(22))
    )
    return b"\x68" + struct.pack("<I", bits | 2) + b"\x9d"


def _long(chooser: random.Random, _places: Sequence[int]) -> bytes:
    """An instruction of 14 to 17 bytes: more than 15 are refused."""
    return (
        b"\x66" * chooser.randrange(3, 8) + b"\x48\xc7\x84\x24" + struct.pack("<ii", chooser.randrange(-256, 256), -1)
    )


def _call(chooser: random.Random, _places: Sequence[int]) -> bytes:
    """A system call of any number by any of the ways in."""
    number = chooser.choice((0, 1, 60, 231, 0x7B0C5, 0x4000_0000, -1, chooser.getrandbits(9), chooser.getrandbits(32)))
    way = chooser.choice((b"\x0f\x05", b"\xcd\x80", b"\x0f\x34"))
    return b"\xb8" + struct.pack("<i", number - (1 << 32) if number >> 31 == 1 else number) + way


def forged_word(chooser: random.Random, guest_bytes: int, frames: Sequence[int] = ()) -> int:
    """Return one 64-bit word for a page table: present or not, leading to `frames`, hidden RAM, devices or nowhere."""
    near = chooser.randrange(-8, 40_000) * 4096
    frame = chooser.choice(
        (
            *frames,
            *frames,
            guest_bytes + near,
            guest_bytes + near,
            chooser.randrange(guest_bytes) & ~0xFFF,
            0xFEE00000,
            1 << chooser.randrange(27, 52),
            (1 << 52) - 4096,
        )
    )
    flags = chooser.choice((7, 7, 0x67, 0x63, 0xE7, 1, 3, 5, chooser.getrandbits(12)))
    high = chooser.choice((0, 0, 0, 1 << 63, chooser.getrandbits(12) << 52))
    return (frame & 0x000F_FFFF_FFFF_F000 | flags | high) & (1 << 64) - 1


def forged_table(seed: int, guest_bytes: int, frames: Sequence[int] = ()) -> dict[int, int]:
    """Return some words of a page table by index (0 to 511), forged as `forged_word` does."""
    chooser = random.Random(f"forged {seed}")
    count = chooser.choice((1, 4, 40, 512))
    return {index: forged_word(chooser, guest_bytes, frames) for index in chooser.sample(range(512), count)}
