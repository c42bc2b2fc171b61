"""Offsets and values agree with what is known of the kernel's ABI; damage is one exception."""

import ctypes
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image import KernelFacts, KernelImage, TypeTable, load_kernel_image
from thinbox.image.btf import ENUM, ENUM64, INT, PTR, STRUCT, TYPEDEF, UNION, parse_types


class BtfWriter:
    """Builds a BTF section record by record (Documentation/bpf/btf.rst)."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.words: list[int] = []
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self.strings)
        self.strings += text.encode() + b"\0"
        return offset

    def add(
        self, name: str, kind: int, size_or_type: int, rest: list[int], *, vlen: int = 0, flag: bool = False
    ) -> int:
        self.words += [self.name(name), kind << 24 | vlen | flag << 31, size_or_type, *rest]
        self.count += 1
        return self.count

    def struct(
        self, name: str, size: int, members: list[tuple[str, int, int]], *, kind: int = STRUCT, flag: bool = False
    ) -> int:
        rest = [word for member, type_id, offset in members for word in (self.name(member), type_id, offset)]
        return self.add(name, kind, size, rest, vlen=len(members), flag=flag)

    def build(self) -> bytes:
        types = struct.pack(f"<{len(self.words)}I", *self.words)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + bytes(self.strings)


def sample() -> bytes:
    writer = BtfWriter()
    integer = writer.add("int", INT, 4, [32])
    pointer = writer.add("", PTR, integer, [])
    inner = writer.struct("inner", 16, [("a", integer, 0), ("b", pointer, 64)])
    alias = writer.add("inner_t", TYPEDEF, inner, [])
    anonymous = writer.struct("", 16, [("left", integer, 0), ("right", alias, 0)], kind=UNION)
    writer.struct("outer", 32, [("first", pointer, 0), ("", anonymous, 64), ("nested", alias, 128)])
    writer.struct(
        "bits", 4, [("low", integer, 3 << 24), ("high", integer, 5 << 24 | 3), ("whole", integer, 32)], flag=True
    )
    writer.struct("twin", 8, [("x", integer, 0)])
    writer.struct("twin", 8, [("x", integer, 32)])
    writer.add("", ENUM, 4, [writer.name("MINUS"), 0xFFFFFFFF, writer.name("SEVEN"), 7], vlen=2, flag=True)
    writer.add("", ENUM64, 8, [writer.name("BIG"), 1, 2], vlen=1)
    return writer.build()


def test_members_are_found_through_typedefs_and_anonymous_unions() -> None:
    types = TypeTable(sample())
    assert types.offset_of("outer", "left") == 8
    assert types.offset_of("outer", "right.b") == 16
    assert types.offset_of("outer", "nested.b") == 24
    assert types.offset_of("inner_t", "b") == 8
    assert types.size_of("inner_t") == 16
    assert types.member_size("outer", "first") == 8
    assert types.has_member("outer", "left") and not types.has_member("outer", "nope")
    assert types.has_type("inner") and not types.has_type("nope")


def test_what_is_missing_or_ambiguous_is_a_key_error_that_says_so() -> None:
    types = TypeTable(sample())
    for struct_name, member, words in (
        ("nope", "x", "no struct nope"),
        ("outer", "nope", "no member nope"),
        ("outer", "first.b", "no member"),
        ("outer", "", "no member"),
        ("bits", "high", "bit field"),
        ("twin", "x", "several definitions"),
    ):
        with pytest.raises(KeyError, match=words):
            types.offset_of(struct_name, member)
    assert types.offset_of("bits", "whole") == 4
    with pytest.raises(KeyError, match="no enumerator"):
        types.enum_value("nope")
    with pytest.raises(KeyError):
        types.size_of("nope")


def test_enumerators_have_their_sign_and_width() -> None:
    types = TypeTable(sample())
    assert (types.enum_value("MINUS"), types.enum_value("SEVEN"), types.enum_value("BIG")) == (-1, 7, 2 << 32 | 1)


def test_a_kernel_without_btf_is_one_clear_line(make_elf: Any) -> None:
    with pytest.raises(KernelImageError, match="CONFIG_DEBUG_INFO_BTF"):
        parse_types(load_kernel_image(make_elf()))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_types_raise_only_what_is_promised(data: st.DataObject) -> None:
    raw = bytearray(sample())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=4)):
        if raw:
            raw[place] = data.draw(st.integers(0, 255))
    try:
        types = TypeTable(bytes(raw))
        for action in (
            lambda: types.offset_of("outer", "right.b"),
            lambda: types.offset_of("bits", "whole"),
            lambda: types.member_size("outer", "nested"),
            lambda: types.size_of("inner_t"),
            lambda: types.enum_value("BIG"),
        ):
            try:
                action()
            except KeyError:
                pass
    except KernelImageError as error:
        assert "\n" not in str(error)


def test_the_real_kernels_abi_structs_are_as_the_abi_says(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    """Oracles: the x86-64 ABI of ptrace and signals, and the C library's idea of the uapi structs."""
    types = default_facts[1].types

    class Iovec(ctypes.Structure):
        _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))

    registers = [
        "r15",
        "r14",
        "r13",
        "r12",
        "bp",
        "bx",
        "r11",
        "r10",
        "r9",
        "r8",
        "ax",
        "cx",
        "dx",
        "si",
        "di",
        "orig_ax",
        "ip",
        "cs",
        "flags",
        "sp",
        "ss",
    ]
    assert types.size_of("pt_regs") == 8 * len(registers)
    assert [types.offset_of("pt_regs", name) for name in registers] == list(range(0, 168, 8))
    assert types.size_of("iovec") == ctypes.sizeof(Iovec)
    assert types.offset_of("iovec", "iov_len") == Iovec.iov_len.offset
    assert types.size_of("list_head") == 16
    assert types.member_size("task_struct", "comm") == 16
    assert types.size_of("siginfo_t") == 128
    assert types.size_of("pgd_t") == 8
    assert types.enum_value("BPF_PROG_TYPE_TRACING") == 26
    assert types.enum_value("PIDTYPE_PID") == 0


def test_the_real_kernels_structs_hang_together(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    types = default_facts[1].types
    thread = types.offset_of("task_struct", "thread")
    assert types.offset_of("task_struct", "thread.sp") == thread + types.offset_of("thread_struct", "sp")
    # arch/x86 says "must be last" of thread_struct in task_struct
    assert thread + types.size_of("thread_struct") == types.size_of("task_struct")
    assert types.offset_of("task_struct", "tgid") == types.offset_of("task_struct", "pid") + 4
    assert types.offset_of("task_struct", "active_mm") == types.offset_of("task_struct", "mm") + 8
    assert types.offset_of("task_struct", "thread_info") == 0
    assert types.has_member("mm_struct", "pgd")


def test_the_stored_index_gives_the_same_table(default_facts: tuple[KernelImage, KernelFacts]) -> None:
    image, facts = default_facts
    fresh = parse_types(image, facts.symbols)
    assert np.array_equal(fresh.type_starts, facts.types.type_starts)


def test_structs_that_hold_themselves_many_times_are_refused_and_do_not_take_for_ever() -> None:
    writer = BtfWriter()
    writer.struct("loop", 8, [("", 1, 0)] * 60)
    with pytest.raises(KernelImageError, match="too many members|without end"):
        TypeTable(writer.build()).offset_of("loop", "member")
