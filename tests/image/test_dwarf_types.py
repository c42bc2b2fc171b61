"""What is read of DWARF is what pahole makes of it, whichever version the compiler wrote."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinbox.errors import KernelImageError
from thinbox.image import btf
from thinbox.image.btf import TypeTable
from thinbox.image.dwarf_types import types_from_dwarf
from thinbox.image.elf import parse_elf

SOURCE = """
struct forward;
typedef struct forward forward_t;
enum color { RED, GREEN = -5, BLUE = 0x7fffffff };
enum { LONELY = 3000000000u, ALSO = 1 };
enum wide { WIDE = 0x123456789aULL };
enum wide_negative { LOW = -2, HIGH = 0x1000000000LL };
typedef unsigned long word;
typedef const volatile word fixed_word;
struct bits { unsigned a : 3; int b : 5; word c : 33; unsigned d : 17; _Bool e : 1; unsigned char f; enum color g : 4; };
struct __attribute__((packed)) packed { char a; int b : 7; long c; short d : 9; };
struct outer {
    int x;
    union { struct { char y; word z; }; int w[3]; };
    struct bits nested;
    struct { int deep; } named;
    fixed_word q;
    int (*call)(int, char *);
    forward_t *f;
    int cube[2][3][4];
    int flexible[];
};
struct none { int z[0]; };
struct empty {};
struct forward {
    int hello; struct outer *next; struct none nothing; struct empty empty; enum color c; enum wide wide;
    __int128 big; double d; float s; long double ld;
};
typedef struct { int anonymous; } anonymous_t;
union either { int a; struct { short low, high; }; forward_t *p; };
static __attribute__((noinline)) int alone(int first, anonymous_t *second) { return first + second->anonymous; }
static inline int copied(int inside) { return inside * 3; }
int (*keep)(int) = copied;
int variadic(const char *format, ...) { return *format; }
struct forward g; struct outer o; anonymous_t an; enum wide_negative wn; struct packed pk; enum color col;
enum wide wi; union either ei;
long lonely = LONELY;
int main(int argc, char **argv) {
    struct local { int l; } l = { argc };
    return alone(l.l, &an) + copied(argc) + variadic("x", g);
}
"""
OTHER = "struct twin { long a; char b; };\nstruct alike { int same; };\nstruct twin second; struct alike beta;\n"
MORE = "struct twin { char b; long a; };\nstruct alike { int same; };\nstruct twin first; struct alike alpha;\n"


def compile_types(folder: Path, *options: str) -> bytes:
    """Compile the sources and have pahole put BTF beside their DWARF."""
    if shutil.which("gcc") is None or shutil.which("pahole") is None:
        pytest.skip("needs gcc and pahole: apt install gcc dwarves")
    paths = []
    for name, text in (("a", SOURCE), ("b", OTHER), ("c", MORE)):
        paths.append(folder / f"{name}.c")
        paths[-1].write_text(text)
    program = folder / "program"
    subprocess.run(["gcc", "-g", *options, "-O1", "-no-pie", "-w", *paths, "-o", program], check=True)
    subprocess.run(["pahole", "-J", "--btf_gen_floats", program], check=True)
    return program.read_bytes()


def own_btf(program: bytes) -> TypeTable:
    section = next(section for section in parse_elf(program).sections if section.name == ".BTF")
    return TypeTable(program[section.offset : section.offset + section.size_bytes])


def named(types: TypeTable, *kinds: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index in range(len(types)):
        name = types._string(int(types._name_offsets[index])).decode()
        if name and int(types._kinds[index]) in kinds:
            found.setdefault(name, []).append(index + 1)
    return found


def layout(types: TypeTable, type_id: int, base: int = 0, path: str = "") -> list[tuple[str, int, int, int | None]]:
    """All members, nested ones too: name, bit offset, bits of a bit field, bytes."""
    rows = []
    for name, member, offset, bits in types._members(type_id):
        here, inner = f"{path}.{name.decode()}", types._resolve(member)
        rows.append((here, base + offset, bits, types._size(member)))
        if types._kind(inner) in (btf.STRUCT, btf.UNION):
            rows += layout(types, inner, base + offset, here)
    return rows


def whole(types: TypeTable, ids: list[int]) -> set[tuple]:
    return {(types._size(type_id), *layout(types, type_id)) for type_id in ids}


def ask(question):
    try:
        return question()
    except KeyError as error:
        return str(error)


@pytest.fixture(
    scope="module", params=["-gdwarf-5", "-gdwarf-4", "-gdwarf-3", "-gdwarf-2", "-gdwarf-5 -gz", "-gdwarf64"]
)
def both(request, tmp_path_factory) -> tuple[TypeTable, TypeTable]:
    """The types of one program, by pahole and as they are read here."""
    program = compile_types(tmp_path_factory.mktemp("dwarf"), *request.param.split())
    return own_btf(program), TypeTable(types_from_dwarf(program))


def test_every_struct_and_union_has_the_same_size_members_and_offsets(both):
    theirs, ours = both
    for kind in (btf.STRUCT, btf.UNION):
        wanted, found = named(theirs, kind), named(ours, kind)
        assert set(wanted) - set(found) == ({"local"} if kind == btf.STRUCT else set()), "those inside functions alone"
        for name in found:
            assert whole(ours, found[name]) == whole(theirs, wanted[name]), name
    assert len(named(ours, btf.STRUCT)["twin"]) == 2, "what is not the same is kept apart"
    assert len(named(ours, btf.STRUCT)["alike"]) == 1, "and what is the same once"


def test_a_name_with_two_definitions_is_not_answered(both):
    with pytest.raises(KeyError, match="several definitions"):
        both[1].offset_of("twin", "b")


def test_typedefs_enumerators_and_functions_are_the_same(both):
    theirs, ours = both
    for name in named(theirs, btf.TYPEDEF):
        assert ours.size_of(name) == theirs.size_of(name)
    assert ours.offset_of("forward_t", "next") == theirs.offset_of("forward", "next"), "declared before it is defined"
    for name in ("RED", "GREEN", "BLUE", "LONELY", "ALSO", "WIDE", "LOW", "HIGH"):
        assert ask(lambda name=name: ours.enum_value(name)) == ask(lambda name=name: theirs.enum_value(name)), name
    for name in ("alone", "copied", "variadic", "main"):
        assert ours.parameters_of(name) == theirs.parameters_of(name), name


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> bytes:
    return compile_types(tmp_path_factory.mktemp("damaged"), "-gdwarf-5")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_is_one_exception(program, data):
    sections = {section.name: section for section in parse_elf(program).sections}
    section = sections[data.draw(st.sampled_from([".debug_info", ".debug_abbrev", ".debug_str"]))]
    damaged = bytearray(program)
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, section.size_bytes - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        damaged[section.offset + at] = byte
    try:
        TypeTable(types_from_dwarf(bytes(damaged)))
    except KernelImageError as error:
        assert "\n" not in str(error)


def test_a_program_without_types_says_what_to_build(tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt install gcc")
    (tmp_path / "a.c").write_text("int main(void) { return 0; }")
    subprocess.run(["gcc", "-g", "-no-pie", tmp_path / "a.c", "-o", tmp_path / "a"], check=True)
    with pytest.raises(KernelImageError, match="CONFIG_DEBUG_INFO_SPLIT=n"):
        types_from_dwarf((tmp_path / "a").read_bytes())
