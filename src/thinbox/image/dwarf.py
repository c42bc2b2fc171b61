"""The entries of a DWARF `.debug_info`, read fast enough for a kernel's millions.

Why it exists: a vmlinux without BTF says the same in DWARF, a hundred times as long. pyelftools reads its sections,
units and abbreviations; entries are decoded here, in a fourth to a seventh of its time: each by one `struct` of its
abbreviation where its size is fixed, and a subtree that nobody asks for is stepped over by its sibling.

Rules of this file: whatever is wrong with the data, `KernelImageError` is raised by whoever calls `read_units`, which
see; offsets are from the start of `.debug_info`.

Source: DWARF 5, sections 7.5 (entries, forms) and 7.26 (string offsets).
"""

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

from thinbox.errors import KernelImageError

_MOST_SECTION_BYTES = 1 << 30
"""A kernel of Debian's, all of it built in, has 250 MB of `.debug_info`."""
_COMPRESSED_ZSTD = 2  # ELFCOMPRESS_ZSTD
_CHDR = struct.Struct("<IIQQ")  # Elf64_Chdr
_SECTIONS = ("debug_info", "debug_abbrev", "debug_str", "debug_line_str", "debug_str_offsets")

_FIXED = {
    "data1": "B", "data2": "H", "data4": "I", "data8": "Q", "data16": "16s", "flag": "B",
    "ref1": "B", "ref2": "H", "ref4": "I", "ref8": "Q", "ref_sig8": "Q", "ref_sup4": "I", "ref_sup8": "Q",
    "strx1": "B", "strx2": "H", "strx3": "3s", "strx4": "I", "addrx1": "B", "addrx2": "H", "addrx3": "3s",
    "addrx4": "I", "flag_present": "", "implicit_const": "",
}  # fmt: skip
_OFFSETS = ("strp", "line_strp", "sec_offset", "ref_addr", "strp_sup", "GNU_ref_alt", "GNU_strp_alt")
_LEBS = ("udata", "strx", "addrx", "loclistx", "rnglistx", "ref_udata", "GNU_addr_index", "GNU_str_index")
_BLOCKS = {"block1": "<B", "block2": "<H", "block4": "<I"}
_LOCAL_REFERENCES = ("ref1", "ref2", "ref4", "ref8", "ref_udata")
_LONGEST_NAME = 512


class Abbreviation:
    """The shape of an entry: its tag, whether it has children, and where each attribute lies.

    `places` has of each attribute its index among the values (-1: the value is `const`), its form, and `const`.
    """

    __slots__ = ("forms", "has_children", "packed", "places", "tag")

    def __init__(self, declaration: Any, offset_bytes: int, address_bytes: int) -> None:
        self.tag: str = str(declaration["tag"]).removeprefix("DW_TAG_")
        self.has_children: bool = declaration.has_children()
        self.forms: list[str] = []
        self.places: dict[str, tuple[int, str, Any]] = {}
        letters, is_fixed = "<", True
        for spec in declaration["attr_spec"]:
            form = str(spec.form).removeprefix("DW_FORM_")
            is_const = form in ("flag_present", "implicit_const")
            const = spec.value if form == "implicit_const" else 1
            self.places[str(spec.name).removeprefix("DW_AT_")] = (-1 if is_const else len(self.forms), form, const)
            letter = _letter(form, offset_bytes, address_bytes)
            is_fixed = is_fixed and letter is not None
            letters += letter or ""
            if not is_const:
                self.forms.append(form)
        self.packed = struct.Struct(letters) if is_fixed else None


@dataclass(slots=True)
class Unit:
    """A unit: its entries lie from `start` to `end`; `table` has its abbreviations by their code."""

    offset: int
    start: int
    end: int
    table: dict[int, Abbreviation]
    offset_bytes: int
    address_bytes: int
    version: int
    strings_at: int = 0
    language: int = 0


@dataclass(slots=True)
class Entry:
    """An entry: where it starts, its values, and where what follows it starts (its first child, if it has any)."""

    unit: Unit
    offset: int
    shape: Abbreviation
    values: tuple[Any, ...]
    after: int

    @property
    def tag(self) -> str:
        """The tag, without its DW_TAG_."""
        return self.shape.tag


class DebugInfo:
    """All units of one file, and its entries by their offset."""

    def __init__(self, vmlinux: bytes) -> None:
        """Read the sections and the units' headers."""
        from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo  # late: seldom needed

        sections = _read_sections(vmlinux)
        self._info = sections["debug_info"]
        self._strings = {"strp": sections["debug_str"], "line_strp": sections["debug_line_str"]}
        self._string_offsets = sections["debug_str_offsets"]
        self._names: dict[int, bytes] = {}
        described = {
            f"{name}_sec": DebugSectionDescriptor(io.BytesIO(data), f".{name}", 0, len(data), 0)
            for name, data in sections.items()
        }
        config = DwarfConfig(little_endian=True, default_address_size=8, machine_arch="x64")
        parts: dict[str, Any] = dict.fromkeys(signature(DWARFInfo).parameters)
        parts |= {**described, "config": config}
        self._raw = {raw.cu_offset: raw for raw in DWARFInfo(**parts).iter_CUs()}
        self.units = [_unit(raw) for raw in self._raw.values()]
        self._unit_offsets = list(self._raw)
        self._tables: dict[tuple[int, int, int], dict[int, Abbreviation]] = {}

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.units)

    def open_unit(self, unit: Unit) -> Entry:
        """Read a unit's abbreviations and its own entry, and return that."""
        if not unit.table:
            raw = self._raw[unit.offset]
            key = (int(raw["debug_abbrev_offset"]), unit.offset_bytes, unit.address_bytes)
            if key not in self._tables:
                declared = raw.get_abbrev_table()._abbrev_map
                self._tables[key] = {
                    c: Abbreviation(d, unit.offset_bytes, unit.address_bytes) for c, d in declared.items()
                }
            unit.table = self._tables[key]
        entry = self.entry_at(unit, unit.start)
        unit.strings_at = self.number(entry, "str_offsets_base") or 2 * unit.offset_bytes
        unit.language = self.number(entry, "language") or 0
        return entry

    def unit_of(self, offset: int) -> Unit:
        """Return the unit that an entry's offset lies in, opened."""
        unit = self.units[bisect_right(self._unit_offsets, offset) - 1]
        if not unit.table:
            self.open_unit(unit)
        return unit

    def entry_at(self, unit: Unit, offset: int) -> Entry:
        """Read the entry at an offset; that of the end of a list of children is a KeyError."""
        code, at = self._info[offset], offset + 1
        if code >= 0x80:
            code, at = self._leb(offset)
        shape = unit.table[code]
        if shape.packed is not None:
            return Entry(unit, offset, shape, shape.packed.unpack_from(self._info, at), at + shape.packed.size)
        values = []
        for form in shape.forms:
            value, at = self._value(unit, form, at)
            values.append(value)
        return Entry(unit, offset, shape, tuple(values), at)

    def children(self, entry: Entry) -> Iterator[Entry]:
        """Yield the entries right below this one."""
        if not entry.shape.has_children:
            return
        info, unit, at = self._info, entry.unit, entry.after
        while at < unit.end and info[at]:
            child = self.entry_at(unit, at)
            yield child
            at = self.end_of(child)

    def end_of(self, entry: Entry) -> int:
        """Return where the next entry of the same level starts."""
        if not entry.shape.has_children:
            return entry.after
        sibling = self.reference(entry, "sibling")
        if sibling is not None and sibling > entry.offset:
            return sibling
        at, depth, info, unit = entry.after, 1, self._info, entry.unit
        while depth:
            if not info[at]:
                at, depth = at + 1, depth - 1
                continue
            child = self.entry_at(unit, at)
            sibling = self.reference(child, "sibling") if child.shape.has_children else None
            at = child.after if sibling is None or sibling <= at else sibling
            depth += child.shape.has_children and at == child.after
        return at

    def number(self, entry: Entry, attribute: str) -> int | None:
        """Return a constant, None if the entry has none (or an expression)."""
        place = entry.shape.places.get(attribute)
        if place is None:
            return None
        value = place[2] if place[0] < 0 else entry.values[place[0]]
        return value if isinstance(value, int) else None

    def block(self, entry: Entry, attribute: str) -> bytes | None:
        """Return an expression's bytes, None if the entry has none."""
        place = entry.shape.places.get(attribute)
        value = entry.values[place[0]] if place is not None and place[0] >= 0 else None
        return value if isinstance(value, bytes) else None

    def reference(self, entry: Entry, attribute: str) -> int | None:
        """Return the offset of the entry that an attribute names, None if it names none of this file."""
        place = entry.shape.places.get(attribute)
        if place is None:
            return None
        value = entry.values[place[0]]
        if place[1] in _LOCAL_REFERENCES:
            return int(value) + entry.unit.offset
        return int(value) if place[1] == "ref_addr" else None

    def name(self, entry: Entry) -> bytes:
        """Return the entry's name, empty if it has none."""
        place = entry.shape.places.get("name")
        if place is None:
            return b""
        value, form = entry.values[place[0]], place[1]
        if form == "string":
            return bytes(value)
        if form == "strp":
            known = self._names.get(value)
            if known is None:
                self._names[value] = known = self._string(self._strings[form], value)
            return known
        if form.startswith("strx"):
            index = int.from_bytes(value, "little") if isinstance(value, bytes) else value
            size = entry.unit.offset_bytes
            at = entry.unit.strings_at + index * size
            return self._string(self._strings["strp"], int.from_bytes(self._string_offsets[at : at + size], "little"))
        return self._string(self._strings[form], value)  # a KeyError: a string of another file

    @staticmethod
    def _string(strings: bytes, at: int) -> bytes:
        end = strings.index(b"\0", at, at + _LONGEST_NAME + 1)
        return strings[at:end]

    def _value(self, unit: Unit, form: str, at: int) -> tuple[Any, int]:
        letter = _letter(form, unit.offset_bytes, unit.address_bytes)
        if letter is not None:
            packed = struct.Struct("<" + letter)
            return packed.unpack_from(self._info, at)[0], at + packed.size
        if form in _LEBS:
            return self._leb(at)
        if form == "sdata":
            value, end = self._leb(at)
            return value - (1 << 7 * (end - at)) if self._info[end - 1] & 0x40 else value, end
        if form == "string":
            text = self._string(self._info, at)
            return text, at + len(text) + 1
        if form == "indirect":
            code, at = self._leb(at)
            from elftools.dwarf.enums import DW_FORM_raw2name

            return self._value(unit, DW_FORM_raw2name[code].removeprefix("DW_FORM_"), at)
        if form in _BLOCKS:
            packed = struct.Struct(_BLOCKS[form])
            size, start = packed.unpack_from(self._info, at)[0], at + packed.size
        elif form in ("block", "exprloc"):
            size, start = self._leb(at)
        else:
            raise KernelImageError(f"it has a form that is not known, {form}")
        return self._info[start : start + size], start + size

    def _leb(self, at: int) -> tuple[int, int]:
        """Return an unsigned LEB128 number, and where it ends."""
        value, shift = 0, 0
        while True:
            byte = self._info[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7


def _letter(form: str, offset_bytes: int, address_bytes: int) -> str | None:
    """Return a form's letter for `struct`, None if its size is not fixed."""
    if form in _OFFSETS:
        return "I" if offset_bytes == 4 else "Q"
    if form == "addr":
        return "Q" if address_bytes == 8 else "I"
    return _FIXED.get(form)


def _unit(raw: Any) -> Unit:
    offset_bytes = 4 if raw.dwarf_format() == 32 else 8
    end = raw.cu_offset + raw["unit_length"] + (4 if offset_bytes == 4 else 12)
    return Unit(raw.cu_offset, raw.cu_die_offset, end, {}, offset_bytes, raw["address_size"], raw["version"])


def has_debug_info(names: Iterator[str] | tuple[str, ...] | list[str]) -> bool:
    """Tell whether a file with sections of these names has DWARF."""
    return any(name in (".debug_info", ".zdebug_info") for name in names)


def _read_sections(vmlinux: bytes) -> dict[str, bytes]:
    """Return the sections that types are in, unpacked, empty where there is none."""
    from elftools.elf.elffile import ELFFile

    elf, found = ELFFile(io.BytesIO(vmlinux)), {}
    for name in _SECTIONS:
        section, old = elf.get_section_by_name(f".{name}"), elf.get_section_by_name(f".z{name}")
        if section is not None and section.data_size > _MOST_SECTION_BYTES:
            raise KernelImageError(f"its .{name} is larger than {_MOST_SECTION_BYTES >> 20} MiB")
        if section is not None:
            found[name] = _unpack_zstd(vmlinux, section) if section.compressed else section.data()
        else:
            found[name] = b"" if old is None else _unpack_old(old.data())
    return found


def _unpack_zstd(vmlinux: bytes, section: Any) -> bytes:
    start = section["sh_offset"]
    kind, _reserved, size_bytes, _align = _CHDR.unpack_from(vmlinux, start)
    if kind != _COMPRESSED_ZSTD:
        return bytes(section.data())
    import zstandard

    packed = vmlinux[start + _CHDR.size : start + section["sh_size"]]
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size_bytes)


def _unpack_old(packed: bytes) -> bytes:
    """Unpack what GNU tools of before 2015 wrote: "ZLIB", the size (8 bytes, big-endian), the stream."""
    size_bytes = int.from_bytes(packed[4:12], "big")
    if packed[:4] != b"ZLIB" or size_bytes > _MOST_SECTION_BYTES:
        raise KernelImageError("a packed section is damaged")
    return zlib.decompressobj().decompress(packed[12:], size_bytes)
