"""Struct layouts and enum values from a kernel's own BTF section.

Why it exists: offsets of struct members differ between kernels and configurations, and a wrong one is a
wrong verdict. BTF is 4 MB of variable-length records; only where each begins is indexed (one pass, cached
by `facts`), everything else is read when it is asked for.

Source: Documentation/bpf/btf.rst; include/uapi/linux/btf.h.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinbox.errors import KernelImageError, MissingFactError
from thinbox.image.kernel import KernelImage
from thinbox.image.symbols import SymbolTable

_MAGIC = 0xEB9F
RAW_MAGIC = b"\x9f\xeb"
"""How raw BTF begins."""
_HEADER = struct.Struct("<HBBIIIII")
_POINTER_BYTES = 8
_LARGEST_BYTES = 64 << 20
"""Debian's cloud kernel has 4 MiB."""
_LONGEST_NAME = 512
"""KSYM_NAME_LEN (include/linux/kallsyms.h)."""
_MOST_STEPS = 100_000
"""Structs and members one lookup looks at; nested ones that refer to themselves many times would take for ever."""
_DEEPEST = 64
"""Most nested types one lookup follows; C nests far less, a damaged BTF may loop."""

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)

_SAME_LAYOUT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
# Words that follow the 3-word btf_type: a fixed number, and some for each of `vlen` entries.
_FIXED_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_ENTRY_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}


@dataclass(frozen=True, slots=True)
class _Place:
    """A member found: bits from the start of the outermost struct, its type, and its width if a bit field."""

    bit_offset: int
    type_id: int
    bitfield_bits: int


class TypeTable:
    """The types of a kernel; struct, union and typedef names share one name space here, structs first.

    A name with several definitions (static structs of different files) is only answered if all agree.
    """

    __slots__ = ("_kinds", "_name_offsets", "_offsets_of_strings", "_places", "_strings", "_words", "type_starts")

    def __init__(self, btf: bytes, type_starts: npt.NDArray[np.uint32] | None = None) -> None:
        """Index `btf`; `type_starts` (word index of every type, id 1 first) saves the pass if known.

        Raises:
            KernelImageError: `btf` is damaged.
        """
        if len(btf) > _LARGEST_BYTES:
            raise _damaged(f"it is larger than {_LARGEST_BYTES >> 20} MiB")
        types, self._strings = _split(btf)
        self._words: npt.NDArray[np.uint32] = np.frombuffer(types, np.uint32)
        self.type_starts = _index_types(self._words.tolist()) if type_starts is None else type_starts
        if len(self.type_starts) and int(self.type_starts[-1]) + 3 > len(self._words):
            raise _damaged("its index does not fit it")
        self._name_offsets = self._words[self.type_starts]
        self._kinds = self._words[self.type_starts + np.uint32(1)] >> 24 & 31
        self._places: dict[tuple[str, str], _Place] = {}
        self._offsets_of_strings: dict[str, npt.NDArray[np.uint32]] = {}

    def __len__(self) -> int:
        """Return the number of types, `void` not counted."""
        return len(self.type_starts)

    def offset_of(self, type_name: str, member: str) -> int:
        """Return the bytes from the start of `type_name` to `member`; `member` may be dotted ("thread.sp").

        Members of anonymous structs and unions are found as C finds them.

        Raises:
            KeyError: no such struct or member, or it is a bit field, or its definitions differ.
            KernelImageError: the BTF is damaged.
        """
        place = self._find_place(type_name, member)
        if place.bit_offset % 8 or place.bitfield_bits:
            raise MissingFactError(f"{type_name}.{member} is a bit field; it has no byte offset")
        return place.bit_offset // 8

    def bits_of(self, type_name: str, member: str) -> tuple[int, int]:
        """Return (bits from the start of `type_name`, bits wide) of a bit field; raises as `offset_of` does.

        The second is 0 for a member that is none.
        """
        place = self._find_place(type_name, member)
        return place.bit_offset, place.bitfield_bits

    def member_size(self, type_name: str, member: str) -> int:
        """Return the size of a member in bytes; raises as `offset_of` does."""
        return self._size(self._find_place(type_name, member).type_id)

    def size_of(self, type_name: str) -> int:
        """Return the size of a struct, union or typedef in bytes; raises as `offset_of` does."""
        sizes = {self._size(type_id) for type_id in self._named(type_name)}
        if len(sizes) != 1:
            raise MissingFactError(
                f"the kernel has {len(sizes) or 'no'} definitions of {type_name} that differ in size"
            )
        return sizes.pop()

    def has_type(self, type_name: str) -> bool:
        """Tell whether the kernel has a struct, union or typedef of that name."""
        return bool(self._named(type_name))

    def has_member(self, type_name: str, member: str) -> bool:
        """Tell whether `offset_of` would find the member (True for bit fields too)."""
        try:
            self._find_place(type_name, member)
        except KeyError:
            return False
        return True

    def parameters_of(self, function: str) -> tuple[str, ...]:
        """Return the names of a function's parameters.

        Raises:
            KeyError: the kernel describes no such function, or several that differ.
        """
        found = {self._parameters(type_id) for type_id in self._functions(function)}
        if len(found) != 1:
            raise MissingFactError(f"the kernel describes {len(found) or 'no'} functions {function} that differ")
        return found.pop()

    def function_names(self) -> set[str]:
        """Return the names of all functions that the kernel describes."""
        found = self._name_offsets[self._kinds == FUNC].tolist()
        return {self._string(offset).decode("ascii", "replace") for offset in found}

    def _functions(self, name: str) -> list[int]:
        hits = np.flatnonzero(np.isin(self._name_offsets, self._string_offsets(name)))
        return [int(index) + 1 for index in hits if self._kinds[index] == FUNC]

    def _parameters(self, type_id: int) -> tuple[str, ...]:
        proto = int(self._words[int(self.type_starts[type_id - 1]) + 2])
        if self._kind(proto) != FUNC_PROTO:
            raise _damaged("a function has no prototype")
        start, (count, _flag) = int(self.type_starts[proto - 1]), self._info(proto)
        names = self._words[start + 3 : start + 3 + 2 * count : 2].tolist()
        return tuple(self._string(name).decode("ascii", "replace") for name in names)

    def enum_value(self, name: str) -> int:
        """Return the value of the enumerator `name`.

        Raises:
            KeyError: no enum has it, or two enums give it different values.
        """
        values = set(self._enum_values(name))
        if not values:
            raise MissingFactError(f"the kernel has no enumerator {name}")
        if len(values) > 1:
            raise MissingFactError(f"the kernel has {len(values)} enumerators {name} with different values")
        return values.pop()

    def _enum_values(self, name: str) -> Iterator[int]:
        places = np.flatnonzero(np.isin(self._words, self._string_offsets(name)))
        for place in places.tolist():
            index = int(np.searchsorted(self.type_starts, place, "right")) - 1
            kind = int(self._kinds[index]) if index >= 0 else 0
            if kind not in (ENUM, ENUM64):
                continue
            start = int(self.type_starts[index])
            vlen, signed = self._info(index + 1)
            entry, rest = divmod(place - start - 3, _ENTRY_WORDS[kind])
            if rest or not 0 <= entry < vlen:
                continue
            value, bits = int(self._words[place + 1]), 32
            if kind == ENUM64:
                value, bits = value | int(self._words[place + 2]) << 32, 64
            yield value - (1 << bits) if signed and value >> bits - 1 else value

    def _string_offsets(self, name: str) -> npt.NDArray[np.uint32]:
        """Return every offset of `name` in the string section (deduplication may let strings share tails)."""
        known = self._offsets_of_strings.get(name)
        if known is not None:
            return known
        needle, found, at = name.encode() + b"\0", [], 0
        while name and (at := self._strings.find(needle, at)) >= 0:
            found.append(at)
            at += 1
        self._offsets_of_strings[name] = known = np.array(found, np.uint32)
        return known

    def _named(self, type_name: str) -> list[int]:
        """Return the ids of the definitions of a name: structs, or else unions, or else typedefs."""
        hits = np.flatnonzero(np.isin(self._name_offsets, self._string_offsets(type_name)))
        for kind in (STRUCT, UNION, TYPEDEF):
            ids = [int(index) + 1 for index in hits if self._kinds[index] == kind]
            if ids:
                return ids
        return []

    def _find_place(self, type_name: str, member: str) -> _Place:
        known = self._places.get((type_name, member))
        if known is not None:
            return known
        ids = self._named(type_name)
        if not ids:
            raise MissingFactError(f"the kernel has no struct {type_name}")
        found = {place for type_id in ids if (place := self._walk_path(type_id, member)) is not None}
        if not found:
            raise MissingFactError(f"the kernel's {type_name} has no member {member}")
        if len({(place.bit_offset, place.bitfield_bits) for place in found}) > 1:
            raise MissingFactError(f"the kernel has several definitions of {type_name} that differ in {member}")
        place = min(found, key=lambda candidate: candidate.type_id)
        self._places[type_name, member] = place
        return place

    def _walk_path(self, type_id: int, path: str) -> _Place | None:
        place = _Place(0, type_id, 0)
        for name in path.split("."):
            step = self._find_member(self._resolve(place.type_id), name.encode(), _DEEPEST, [_MOST_STEPS])
            if step is None:
                return None
            place = _Place(place.bit_offset + step.bit_offset, step.type_id, step.bitfield_bits)
        return place

    def _find_member(self, type_id: int, name: bytes, depth: int, steps: list[int]) -> _Place | None:
        """Return the member's place; `steps` has the number of members that may still be looked at."""
        if depth == 0:
            raise _damaged("its structs nest without end")
        if self._kind(type_id) not in (STRUCT, UNION):
            return None
        for member_name, member_id, bit_offset, bits in self._members(type_id):
            steps[0] -= 1
            if steps[0] < 0:
                raise _damaged("its structs have too many members")
            if name and member_name == name:
                return _Place(bit_offset, member_id, bits)
            if not member_name:
                inner = self._find_member(self._resolve(member_id), name, depth - 1, steps)
                if inner is not None:
                    return _Place(bit_offset + inner.bit_offset, inner.type_id, inner.bitfield_bits)
        return None

    def _members(self, type_id: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield (name, type id, bit offset, bit-field width or 0) of a struct or union."""
        start = int(self.type_starts[type_id - 1])
        vlen, has_bitfields = self._info(type_id)
        words = self._words[start + 3 : start + 3 + 3 * vlen].tolist()
        for at in range(0, len(words) - 2, 3):
            name_offset, member_id, offset = words[at : at + 3]
            bits = offset >> 24 if has_bitfields else 0
            yield self._string(name_offset), member_id, offset & 0xFFFFFF if has_bitfields else offset, bits

    def _size(self, type_id: int, depth: int = _DEEPEST) -> int:
        type_id = self._resolve(type_id)
        kind = self._kind(type_id)
        start = int(self.type_starts[type_id - 1]) if type_id else 0
        if kind == PTR:
            return _POINTER_BYTES
        if kind == ARRAY and depth:
            return self._size(int(self._words[start + 3]), depth - 1) * int(self._words[start + 5])
        if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
            return int(self._words[start + 2])
        raise MissingFactError("a function, a forward declaration or void has no size")

    def _resolve(self, type_id: int) -> int:
        """Follow typedefs and qualifiers to the type that has a layout."""
        for _ in range(_DEEPEST):
            if self._kind(type_id) not in _SAME_LAYOUT:
                return type_id
            type_id = int(self._words[int(self.type_starts[type_id - 1]) + 2])
        raise _damaged("its typedefs nest without end")

    def _kind(self, type_id: int) -> int:
        """Return the BTF kind of a type, 0 for void."""
        if type_id > len(self.type_starts):
            raise _damaged("it refers to a type it does not have")
        return int(self._kinds[type_id - 1]) if type_id else 0

    def _info(self, type_id: int) -> tuple[int, bool]:
        """Return `vlen` and `kind_flag` of a type."""
        info = int(self._words[int(self.type_starts[type_id - 1]) + 1])
        return info & 0xFFFF, bool(info >> 31)

    def _string(self, offset: int) -> bytes:
        end = self._strings.find(b"\0", offset, offset + _LONGEST_NAME + 1)
        if end < 0:
            raise _damaged("a name lies outside it")
        return self._strings[offset:end]


def empty_types() -> TypeTable:
    """Return the types of a kernel that describes none."""
    return TypeTable(assemble(b"", b"\0"))


def assemble(types: bytes, strings: bytes) -> bytes:
    """Return BTF of these type records and strings."""
    return _HEADER.pack(_MAGIC, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings)) + types + strings


def locate_btf(image: KernelImage, symbols: SymbolTable | None = None) -> tuple[int, int]:
    """Return where the BTF is in `image.vmlinux`: (offset, bytes), (0, 0) if the kernel has none."""
    section = image.section(".BTF")
    if section is not None and section.size_bytes:
        return section.offset, section.size_bytes
    start = symbols.find("__start_BTF") if symbols is not None else None
    stop = symbols.find("__stop_BTF") if symbols is not None else None
    if start is None or stop is None or stop <= start:
        return 0, 0
    offset = image.offset_of_vaddr(start)
    return (0, 0) if offset is None else (offset, stop - start)


def parse_types(
    image: KernelImage, symbols: SymbolTable | None = None, type_starts: npt.NDArray[np.uint32] | None = None
) -> TypeTable:
    """Index the types of `image`; `type_starts` is the index if it is known (see `TypeTable`).

    Raises:
        KernelImageError: the kernel was built without BTF, or it is damaged.
    """
    offset, size_bytes = locate_btf(image, symbols)
    if size_bytes == 0:
        raise KernelImageError("the kernel has no type information; it must be built with CONFIG_DEBUG_INFO_BTF=y")
    return TypeTable(image.vmlinux[offset : offset + size_bytes], type_starts)


def _split(btf: bytes) -> tuple[bytes, bytes]:
    """Check the header and return the type section and the string section."""
    if len(btf) < _HEADER.size:
        raise _damaged("it is cut short")
    magic, version, _, header_bytes, type_at, type_bytes, string_at, string_bytes = _HEADER.unpack_from(btf)
    if magic != _MAGIC or version != 1:
        raise _damaged("its header is not BTF version 1")
    types = btf[header_bytes + type_at : header_bytes + type_at + type_bytes]
    strings = btf[header_bytes + string_at : header_bytes + string_at + string_bytes]
    if len(types) != type_bytes or len(strings) != string_bytes or type_bytes % 4:
        raise _damaged("it is cut short")
    return types, strings


def _index_types(words: list[int]) -> npt.NDArray[np.uint32]:
    """Return the word index of every type record."""
    starts, at, end = [], 0, len(words)
    while at + 3 <= end:
        starts.append(at)
        info = words[at + 1]
        kind = info >> 24 & 31
        if not INT <= kind <= ENUM64:
            raise _damaged(f"it has a type of unknown kind {kind}")
        at += 3 + _FIXED_WORDS.get(kind, 0) + _ENTRY_WORDS.get(kind, 0) * (info & 0xFFFF)
    if at != end:
        raise _damaged("its last type is cut short")
    return np.array(starts, np.uint32)


def _damaged(reason: str) -> KernelImageError:
    return KernelImageError(f"the kernel's type information (BTF) is damaged: {reason}; fetch the kernel again")
