"""The hand-made kernel module is what Linux's loader looks for."""

import io

import capstone
from elftools.elf.elffile import ELFFile

from thinbox.audit.kernel_module import build_module

OFFSETS = {"name": 24, "init": 312, "exit": 1200}


class Layout:
    """A `struct module` of some kernel."""

    def size_of(self, _type_name: str) -> int:
        return 1280

    def offset_of(self, _type_name: str, member: str) -> int:
        return OFFSETS[member]


def test_a_module_has_the_sections_and_the_name_that_load_module_wants() -> None:
    elf = ELFFile(io.BytesIO(build_module(Layout(), "audited", has_code=False)))
    assert (elf.header.e_type, elf.header.e_machine) == ("ET_REL", "EM_X86_64")
    this = elf.get_section_by_name(".gnu.linkonce.this_module")
    assert len(this.data()) == 1280
    assert this.data()[24:32] == b"audited\0"
    assert not any(this.data()[32:])
    assert elf.get_section_by_name(".modinfo").data() == b"license=GPL\0"
    assert elf.get_section_by_name(".symtab").num_symbols() == 1


def test_a_module_with_code_points_to_its_init_and_exit_functions() -> None:
    elf = ELFFile(io.BytesIO(build_module(Layout(), "audited", has_code=True)))
    symbols = elf.get_section_by_name(".symtab")
    code = elf.get_section_by_name(".text").data()
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    found = {}
    for relocation in elf.get_section_by_name(".rela.gnu.linkonce.this_module").iter_relocations():
        symbol = symbols.get_symbol(relocation["r_info_sym"])
        words = []
        for instruction in decoder.disasm(code[symbol.entry.st_value :], 0):
            words.append(f"{instruction.mnemonic} {instruction.op_str}".strip())
            if instruction.mnemonic == "ret":
                break
        found[relocation["r_offset"]] = (symbol.name, words)
    assert found == {312: ("init_module", ["xor eax, eax", "ret"]), 1200: ("cleanup_module", ["ret"])}
