"""The agent is seven instructions, and the initramfs holds it where a kernel looks for it."""

import io
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import capstone
import pytest
from elftools.elf.elffile import ELFFile

from thinbox.guest.agent import build_agent
from thinbox.guest.initramfs import FOLDERS, build_initramfs
from thinbox.machine.slots import HYPERCALL_NR
from thinbox.syscalls.table import all_calls

BUSYBOX = b"\x7fELF" + bytes(range(256)) * 33 + b"odd"


def test_the_agent_is_seven_instructions() -> None:
    elf = ELFFile(io.BytesIO(build_agent()))
    (segment,) = elf.iter_segments()
    entry = elf.header.e_entry
    code = segment.data()[entry - segment.header.p_vaddr :]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    assert [(line, words) for _a, _s, line, words in decoder.disasm_lite(code, entry)] == [
        ("xor", "ebx, ebx"),
        ("mov", f"eax, {HYPERCALL_NR:#x}"),
        ("mov", "rdi, rbx"),
        ("syscall", ""),
        ("syscall", ""),
        ("mov", "rbx, rax"),
        ("jmp", f"{entry + 2:#x}"),
    ]
    assert sum(size for _a, size, _m, _o in decoder.disasm_lite(code, entry)) == len(code)


def test_the_agent_is_a_static_program_that_may_not_write_its_code() -> None:
    elf = ELFFile(io.BytesIO(build_agent()))
    (segment,) = elf.iter_segments()
    assert (elf.header.e_type, elf.header.e_machine) == ("ET_EXEC", "EM_X86_64")
    assert segment.header.p_type == "PT_LOAD"
    assert segment.header.p_flags == 5
    assert segment.header.p_filesz == segment.header.p_memsz == len(build_agent())
    assert segment.header.p_vaddr <= elf.header.e_entry < segment.header.p_vaddr + segment.header.p_memsz


def test_no_kernel_has_a_call_of_the_agents_number() -> None:
    assert HYPERCALL_NR not in {info.nr for info in all_calls()}
    assert HYPERCALL_NR > 10_000


def parse_newc(data: bytes) -> dict[str, tuple[int, tuple[int, int], bytes]]:
    """Parse Documentation/driver-api/early-userspace/buffer-format.rst; name to (mode, device, content)."""
    found: dict[str, tuple[int, tuple[int, int], bytes]] = {}
    inodes = set()
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, _uid, _gid, links, _mtime, size, _ma, _mi, major, minor, name_size, check = fields
        name_at = at + 110
        name = data[name_at : name_at + name_size]
        assert name.endswith(b"\0")
        content_at = (name_at + name_size + 3) & ~3
        content = data[content_at : content_at + size]
        assert len(content) == size
        at = (content_at + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        assert (links, check) == (1, 0)
        assert inode not in inodes
        inodes.add(inode)
        text = name[:-1].decode()
        assert text not in found
        found[text] = mode, (major, minor), content


def test_the_initramfs_reads_back() -> None:
    entries = parse_newc(build_initramfs(BUSYBOX))
    assert entries["init"] == (stat.S_IFREG | 0o755, (0, 0), build_agent())
    assert entries["bin/busybox"] == (stat.S_IFREG | 0o755, (0, 0), BUSYBOX)
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, (5, 1), b"")
    assert entries["dev/null"] == (stat.S_IFCHR | 0o666, (1, 3), b"")
    assert {name for name, (mode, _d, _c) in entries.items() if stat.S_ISDIR(mode)} == set(FOLDERS)
    assert entries["tmp"][0] == stat.S_IFDIR | 0o1777


def test_parents_come_before_children() -> None:
    seen = {"."}
    for name in parse_newc(build_initramfs(BUSYBOX)):
        assert str(Path(name).parent) in seen, name
        seen.add(name)


def test_the_initramfs_is_the_same_bytes_for_the_same_busybox() -> None:
    assert build_initramfs(BUSYBOX) == build_initramfs(BUSYBOX)
    assert build_initramfs(BUSYBOX) != build_initramfs(BUSYBOX + b"x")


@pytest.mark.parametrize("size", range(5))
def test_content_of_every_length_keeps_the_alignment(size: int) -> None:
    assert parse_newc(build_initramfs(bytes(size)))["bin/busybox"][2] == bytes(size)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_unpacks_the_initramfs(tmp_path: Path) -> None:
    archive = build_initramfs(BUSYBOX)
    wanted = ["init", "bin/busybox", "etc/passwd", "tmp"]
    subprocess.run(["cpio", "-idm", "--quiet", *wanted], input=archive, cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "init").read_bytes() == build_agent()
    assert (tmp_path / "bin/busybox").read_bytes() == BUSYBOX
    assert (tmp_path / "init").stat().st_mode & 0o7777 == 0o755
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True, timeout=600)
    assert listed.stdout.decode().split() == list(parse_newc(archive))


@pytest.mark.skipif(not Path("/proc/sys").exists() or struct.calcsize("P") != 8, reason="needs 64-bit Linux")
def test_a_kernel_takes_the_agent_as_a_program(tmp_path: Path) -> None:
    # Outside thinbox the agent's call does not exist: the program runs, getting ENOSYS, until it is stopped.
    program = tmp_path / "agent"
    program.write_bytes(build_agent())
    program.chmod(0o755)
    process = subprocess.Popen([program], stdin=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    finally:
        process.kill()
        process.wait()
