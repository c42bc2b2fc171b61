"""The hand-made kernel module is what Linux's loader looks for."""

import io

import capstone
from elftools.elf.elffile import ELFFile

from thinbox.audit.kernel_module import build_module
from thinbox.kernel.module_file import ModuleFileShape

SHAPE = ModuleFileShape(module_bytes=1280, name_at=24, init_at=312, exit_at=1200)


def test_a_module_has_the_sections_and_the_name_that_load_module_wants() -> None:
    elf = ELFFile(io.BytesIO(build_module(SHAPE, "audited", has_code=False)))
    assert (elf.header.e_type, elf.header.e_machine) == ("ET_REL", "EM_X86_64")
    this = elf.get_section_by_name(".gnu.linkonce.this_module")
    assert len(this.data()) == 1280
    assert this.data()[24:32] == b"audited\0"
    assert not any(this.data()[32:])
    assert elf.get_section_by_name(".modinfo").data() == b"license=GPL\0"
    assert elf.get_section_by_name(".symtab").num_symbols() == 1


def test_a_module_with_code_points_to_its_init_and_exit_functions() -> None:
    elf = ELFFile(io.BytesIO(build_module(SHAPE, "audited", has_code=True)))
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
