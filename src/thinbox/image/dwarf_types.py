"""The types of a vmlinux's DWARF, as the BTF that pahole would make of it.

Why it exists: a kernel built with debugging data and no BTF says all that BTF says. What is asked of types has one
reader (`btf.TypeTable`), so that DWARF is written as what it reads.

Rules of this file: pointers point to void and parameters have no types, for nobody asks what they are; so no type
contains itself, and what many units repeat is kept once if all of it is the same; types inside functions are left out.

Source: DWARF 5, sections 5 (types) and 3.3 (functions); Documentation/bpf/btf.rst.
"""

import struct
import time
from collections.abc import Callable
from typing import Any

from thinbox.errors import KernelImageError
from thinbox.image import btf
from thinbox.image.dwarf import DebugInfo, Entry

_LANGUAGE_RUST = 0x1C
_KINDS = {"structure_type": btf.STRUCT, "class_type": btf.STRUCT, "union_type": btf.UNION, "enumeration_type": btf.ENUM}
_QUALIFIERS = {
    "typedef": btf.TYPEDEF, "const_type": btf.CONST, "volatile_type": btf.VOLATILE,
    "restrict_type": btf.RESTRICT, "atomic_type": btf.CONST,
}  # fmt: skip
_POINTERS = ("pointer_type", "reference_type", "rvalue_reference_type", "ptr_to_member_type")
_ENCODING_FLOAT = 4  # DW_ATE_float
_PLUS_UCONST = 0x23  # DW_OP_plus_uconst
_MOST_BITS = 1 << 24
"""BTF's offsets in structs with bit fields have 24 bits."""
_MOST_ENTRIES = 0xFFFF
_ENUM_BYTES = 4
_SILENT_S = 2.0

Report = Callable[[str], None]


def types_from_dwarf(vmlinux: bytes, say: Report | None = None) -> bytes:
    """Return the types of an ELF file with DWARF as BTF; takes minutes for a distribution's kernel, and says so.

    Raises:
        KernelImageError: the DWARF is damaged, split off, or describes no types.
    """
    try:
        made = _Types(DebugInfo(vmlinux)).build(say or (lambda _line: None))
    except KernelImageError as error:
        raise KernelImageError(f"the kernel's DWARF cannot be read: {error}") from error
    except Exception as error:  # pyelftools has its own, and what is decoded here runs into whatever is damaged
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise KernelImageError(f"the kernel's DWARF is damaged ({reason}); build the kernel again") from error
    if made is None:
        raise KernelImageError(
            "the kernel's DWARF describes no types; build it with CONFIG_DEBUG_INFO_DWARF5=y, "
            "CONFIG_DEBUG_INFO_SPLIT=n and CONFIG_DEBUG_INFO_REDUCED=n"
        )
    return made


class _Types:
    """Types as they are found, each a BTF record: [name, info, size or type, words…]."""

    def __init__(self, debug: DebugInfo) -> None:
        self._debug = debug
        self._records: list[list[int]] = []
        self._strings, self._string_offsets = bytearray(b"\0"), {b"": 0}
        self._known: dict[Any, int] = {}  # what is the same in all units, by its key
        self._here: dict[int, int] = {}  # what has been seen of this unit, by its offset
        self._forwards: dict[int, tuple[int, bytes]] = {}
        self._whole: dict[tuple[int, bytes], int] = {}

    def build(self, say: Report) -> bytes | None:
        """Read all units; return BTF, None if they describe no struct."""
        said, total = time.monotonic(), len(self._debug)
        for index, unit in enumerate(self._debug.units):
            if time.monotonic() - said > _SILENT_S:
                said = time.monotonic()
                say(f"reading the kernel's types from DWARF: {100 * index // total} %")
            top = self._debug.open_unit(unit)
            if unit.language == _LANGUAGE_RUST:
                continue  # names and layouts of another language; pahole leaves them out, too
            self._here.clear()
            for entry in self._debug.children(top):
                self._take(entry)
        return self._write() if self._whole else None

    def _take(self, entry: Entry) -> None:
        tag = entry.shape.tag
        if tag in _KINDS:
            if "declaration" not in entry.shape.places:
                self._type_at(entry)
        elif tag == "typedef":
            self._type_at(entry)
        elif tag == "subprogram" and ("low_pc" in entry.shape.places or "ranges" in entry.shape.places):
            self._function(entry)

    def _add(
        self, kind: int, name: bytes, third: int, words: list[int] | None = None, *, vlen: int = 0, flag: bool = False
    ) -> int:
        if vlen > _MOST_ENTRIES:
            raise KernelImageError(f"a type has {vlen} members")
        self._records.append([self._string(name), flag << 31 | kind << 24 | vlen, third, *(words or ())])
        return len(self._records)

    def _string(self, name: bytes) -> int:
        known = self._string_offsets.get(name)
        if known is None:
            self._string_offsets[name] = known = len(self._strings)
            self._strings += name + b"\0"
        return known

    def _type_of(self, entry: Entry) -> int:
        """Return the id of the type that an entry names, 0 for void."""
        offset = self._debug.reference(entry, "type")
        if offset is None:
            if "type" in entry.shape.places:
                raise KernelImageError("it names types of another file")
            return 0
        known = self._here.get(offset)
        if known is not None:
            return known
        unit = entry.unit if entry.unit.offset <= offset < entry.unit.end else self._debug.unit_of(offset)
        return self._type_at(self._debug.entry_at(unit, offset))

    def _type_at(self, entry: Entry) -> int:
        """Return the id of a type, and see that it is or will be written."""
        known = self._here.get(entry.offset)
        if known is not None:
            return known
        tag = entry.tag
        if tag in _KINDS:
            return self._composite(entry, _KINDS[tag])
        if tag in _QUALIFIERS:
            return self._qualifier(entry, _QUALIFIERS[tag])
        if tag in _POINTERS:
            found = self._once((btf.PTR,), lambda: self._add(btf.PTR, b"", 0))
        elif tag == "base_type":
            found = self._base(entry)
        elif tag == "array_type":
            found = self._array(entry)
        elif tag == "subroutine_type":
            found = self._once((btf.FUNC_PROTO,), lambda: self._add(btf.FUNC_PROTO, b"", 0))
        elif tag == "unspecified_type":
            found = 0
        else:
            raise KernelImageError(f"it has a type that is a {tag}")
        self._here[entry.offset] = found
        return found

    def _once(self, key: Any, make: Callable[[], int]) -> int:
        known = self._known.get(key)
        if known is None:
            self._known[key] = known = make()
        return known

    def _composite(self, entry: Entry, kind: int) -> int:
        debug, name = self._debug, self._debug.name(entry)
        if "declaration" in entry.shape.places:
            found = self._once((btf.FWD, kind, name), lambda: self._add(btf.FWD, name, 0))
            self._forwards[found] = kind, name
        else:
            size = debug.number(entry, "byte_size") or 0
            if kind == btf.ENUM:
                kind = btf.ENUM64 if size > _ENUM_BYTES else kind
                words, vlen, flag = self._enumerators(entry, kind)
            else:
                words, vlen, flag = self._members(entry)
            key = (kind, name, size, flag, *words)
            found = self._once(key, lambda: self._add(kind, name, size, words, vlen=vlen, flag=flag))
            self._whole.setdefault((kind, name), found)
        self._here[entry.offset] = found
        return found

    def _qualifier(self, entry: Entry, kind: int) -> int:
        name, target = self._debug.name(entry) if kind == btf.TYPEDEF else b"", self._type_of(entry)
        self._here[entry.offset] = found = self._once((kind, name, target), lambda: self._add(kind, name, target))
        return found

    def _base(self, entry: Entry) -> int:
        name, size = self._debug.name(entry), self._debug.number(entry, "byte_size") or 0
        if self._debug.number(entry, "encoding") == _ENCODING_FLOAT:
            return self._once((btf.FLOAT, name), lambda: self._add(btf.FLOAT, name, size))
        return self._once((btf.INT, name), lambda: self._add(btf.INT, name, size, [8 * size]))

    def _array(self, entry: Entry) -> int:
        element, counts = self._type_of(entry), []
        for child in self._debug.children(entry):
            if child.tag == "subrange_type":
                count, upper = self._debug.number(child, "count"), self._debug.number(child, "upper_bound")
                # Without a bound the array is flexible; one of no elements ends at -1.
                counts.append(count if count is not None else 0 if upper is None else upper + 1 & 0xFFFF_FFFF)
        for count in reversed(counts or [0]):
            words, key = [element, 0, count], (btf.ARRAY, element, count)
            element = self._once(key, lambda words=words: self._add(btf.ARRAY, b"", 0, words))  # type: ignore[misc]
        return element

    def _members(self, entry: Entry) -> tuple[list[int], int, bool]:
        rows = []
        for child in self._debug.children(entry):
            if child.tag != "member":
                continue
            offset, bits = self._place(child)
            rows.append((self._string(self._debug.name(child)), self._type_of(child), offset, bits))
        flag = any(bits for _, _, _, bits in rows)
        if flag and any(offset >= _MOST_BITS for _, _, offset, _ in rows):
            raise KernelImageError("a struct with bit fields is larger than BTF can say")
        words = [word for name, type_id, offset, bits in rows for word in (name, type_id, bits << 24 | offset)]
        return words, len(rows), flag

    def _place(self, member: Entry) -> tuple[int, int]:
        """Return a member's bits from the start of its struct, and its width if it is a bit field.

        Source: DWARF 5, section 5.7.6; of bit fields DWARF 3, section 5.6.6 (from the high end of what holds them).
        """
        debug, bits = self._debug, self._debug.number(member, "bit_size") or 0
        start = debug.number(member, "data_member_location")
        if start is None:
            block = debug.block(member, "data_member_location")
            if block and block[0] != _PLUS_UCONST:
                raise KernelImageError("a member is placed by an expression")
            start = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(block[1:])) if block else 0
        at = debug.number(member, "data_bit_offset")
        if at is not None:
            return 8 * start + at, bits
        from_top = debug.number(member, "bit_offset")
        if from_top is None:
            return 8 * start, bits
        holder = debug.number(member, "byte_size") or self._size_of(self._type_of(member))
        return 8 * (start + holder) - from_top - bits, bits

    def _size_of(self, type_id: int) -> int:
        """Return the size of an integer or an enumeration, behind its typedefs."""
        while type_id:
            record = self._records[type_id - 1]
            if record[1] >> 24 & 31 not in _QUALIFIERS.values():
                return record[2]
            type_id = record[2]
        return 0

    def _enumerators(self, entry: Entry, kind: int) -> tuple[list[int], int, bool]:
        words: list[int] = []
        is_signed, count = False, 0
        for child in self._debug.children(entry):
            if child.tag == "enumerator":
                value = self._debug.number(child, "const_value")
                if value is None:
                    raise KernelImageError("an enumerator has no value")
                words += [self._string(self._debug.name(child)), value & 0xFFFF_FFFF]
                words += [value >> 32 & 0xFFFF_FFFF] if kind == btf.ENUM64 else []
                is_signed, count = is_signed or value < 0, count + 1
        return words, count, is_signed

    def _function(self, entry: Entry) -> None:
        """Note a function that has code: its name and its parameters' names, which what it is a copy of may have."""
        origin, debug = entry, self._debug
        for attribute in ("abstract_origin", "specification"):
            offset = debug.reference(origin, attribute)
            if offset is not None:
                inside = origin.unit.offset <= offset < origin.unit.end
                origin = debug.entry_at(origin.unit if inside else debug.unit_of(offset), offset)
        name = debug.name(origin)
        key = (btf.FUNC, name, debug.number(origin, "decl_line"))
        if not name or key in self._known:
            return
        kinds = ("formal_parameter", "unspecified_parameters")  # the second, "...", has no name
        names = [debug.name(child) for child in debug.children(origin) if child.tag in kinds]
        words = [word for parameter in names for word in (self._string(parameter), 0)]
        shape = self._once(
            (btf.FUNC_PROTO, tuple(names)), lambda: self._add(btf.FUNC_PROTO, b"", 0, words, vlen=len(names))
        )
        self._known[key] = self._add(btf.FUNC, name, shape)

    def _write(self) -> bytes:
        """Return all of it as BTF; what was only declared in a unit is what another unit defines."""
        moved = {found: self._whole[what] for found, what in self._forwards.items() if what in self._whole}
        words: list[int] = []
        for record in self._records:
            if record[1] >> 24 & 31 in _QUALIFIERS.values():
                record[2] = moved.get(record[2], record[2])
            words += record
        types = struct.pack(f"<{len(words)}I", *words)
        return btf.assemble(types, bytes(self._strings))
