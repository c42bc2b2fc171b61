"""What a boot is made of, and the loading of it into RAM: configure here, run in `sequence`."""

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinbox.boot import layout
from thinbox.boot.payload import compressed_payload, unpacked_payload
from thinbox.errors import InputError
from thinbox.machine.cpu_model import DEFAULT_CPU, cpu_model

if TYPE_CHECKING:
    from thinbox.image.kernel import KernelImage
    from thinbox.machine.memory import Memory

COMMAND_LINE = (
    "console=ttyS0 nokaslr pti=on nolapic noapic nosmp acpi=off pci=off tsc=reliable tsc_early_khz=1000000 "
    "lpj=4000000 no5lvl norandmaps randomize_kstack_offset=off random.trust_bootloader=on rdinit=/init panic=-1 "
    "audit=0 i8042.noaux i8042.nokbd i8042.noprobe 8250.nr_uarts=2 cryptomgr.notests"
)
"""Why each: docs/decisions/0003-command-line.md."""

DEFAULT_MEMORY_MIB = 512
MINIMUM_MEMORY_MIB = 96
MAXIMUM_MEMORY_MIB = 3072
_SEED_BYTES = 32
_HEADER_MAGIC = b"HdrS"
_NO_KASLR = "nokaslr"


@dataclass(frozen=True, slots=True)
class BootParams:
    """The options of a boot; they are part of the snapshot's key.

    With `kaslr` the kernel's own decompressor puts it at a random place, which `kaslr_seed` (0 to 2^64 - 1) changes:
    all else it draws on is the same in every boot (the virtual clock and the boot parameters).
    """

    memory_mib: int = DEFAULT_MEMORY_MIB
    append: str = ""
    command_line: str = field(default=COMMAND_LINE)
    kaslr: bool = False
    kaslr_seed: int = 0
    cpu: str = DEFAULT_CPU
    """The level of the CPU (`machine.cpu_model.MODELS`)."""

    def __post_init__(self) -> None:
        cpu_model(self.cpu)
        if not 0 <= self.kaslr_seed < 1 << 64:
            raise InputError(f"--kaslr-seed must be 0 to 2^64 - 1, not {self.kaslr_seed}")
        if self.kaslr_seed and not self.kaslr:
            raise InputError("--kaslr-seed changes nothing without --kaslr")
        if self.kaslr and _NO_KASLR in self.append.split():
            raise InputError(f"--kaslr and --append {_NO_KASLR} contradict each other")
        if not MINIMUM_MEMORY_MIB <= self.memory_mib <= MAXIMUM_MEMORY_MIB:
            raise InputError(
                f"--memory must be {MINIMUM_MEMORY_MIB} to {MAXIMUM_MEMORY_MIB} MiB, not {self.memory_mib}"
            )
        if len(self.full_command_line) >= layout.COMMAND_LINE_LIMIT:
            raise InputError(
                f"the kernel command line is longer than {layout.COMMAND_LINE_LIMIT - 1} bytes; shorten --append"
            )

    @property
    def full_command_line(self) -> str:
        """The command line with the user's words last, where they win."""
        words = self.command_line.split(" ")
        own = " ".join(word for word in words if word != _NO_KASLR) if self.kaslr else self.command_line
        return f"{own} {self.append}".strip()


def load_guest(memory: "Memory", image: "KernelImage", initramfs: bytes, params: BootParams) -> int:
    """Put kernel, initramfs, zero page, memory map, page tables and GDT into RAM; return the CPU's entry (physical).

    Raises `InputError` when the kernel and the initramfs do not fit, or KASLR is asked of a kernel without.
    """
    payload = compressed_payload(image) if params.kaslr else unpacked_payload(image)
    ramdisk = (memory.guest_bytes - len(initramfs) - 4096) & ~0xFFF
    if ramdisk < payload.end_paddr + (32 << 20):
        raise InputError(f"{memory.guest_bytes >> 20} MiB of memory do not hold this kernel; use a larger --memory")
    for paddr, data in payload.pieces:
        memory.write(paddr, data)
    memory.write(ramdisk, initramfs)
    memory.write(layout.COMMAND_LINE, params.full_command_line.encode() + b"\0")
    _write_seed(memory)
    _write_zero_page(memory, image, (ramdisk, len(initramfs)), params.kaslr_seed)
    if params.kaslr:
        memory.write(layout.ZERO_PAGE + layout.HEADER_CODE32_START, struct.pack("<I", payload.pieces[0][0]))
    _write_tables(memory)
    return payload.entry_paddr


def _write_seed(memory: "Memory") -> None:
    """A SETUP_RNG_SEED entry: the guest's random pool is ready at once, and the same in every run."""
    seed = bytes((37 * i + 11) & 0xFF for i in range(_SEED_BYTES))
    memory.write(layout.RNG_SEED, struct.pack("<QII", 0, layout.SETUP_RNG_SEED, len(seed)) + seed)


def _write_zero_page(memory: "Memory", image: "KernelImage", ramdisk: tuple[int, int], kaslr_seed: int) -> None:
    page = bytearray(4096)
    header = image.setup_header or _plain_header()
    page[layout.ZERO_PAGE_HEADER : layout.ZERO_PAGE_HEADER + len(header)] = header
    page[layout.HEADER_TYPE_OF_LOADER] = layout.LOADER_UNDEFINED
    struct.pack_into("<II", page, layout.HEADER_RAMDISK_IMAGE, *ramdisk)
    struct.pack_into("<I", page, layout.HEADER_COMMAND_LINE, layout.COMMAND_LINE)
    struct.pack_into("<Q", page, layout.HEADER_SETUP_DATA, layout.RNG_SEED)
    # The decompressor hashes the whole page for its first entropy (compressed/kaslr.c, get_boot_seed).
    struct.pack_into("<Q", page, layout.ZERO_PAGE_LAST_PAD, kaslr_seed)
    usable = [
        (0, layout.LOW_MEMORY_END, layout.E820_RAM),
        (layout.HIGH_MEMORY, memory.guest_bytes - layout.HIGH_MEMORY, layout.E820_RAM),
    ]
    page[layout.ZERO_PAGE_E820_COUNT] = len(usable)
    for number, entry in enumerate(usable):
        struct.pack_into("<QQI", page, layout.ZERO_PAGE_E820 + 20 * number, *entry)
    memory.write(layout.ZERO_PAGE, bytes(page))


def _plain_header() -> bytes:
    """A setup header for a bare vmlinux: protocol 2.15, command line size as the kernel's own limit."""
    header = bytearray(0x7F)
    base = layout.ZERO_PAGE_HEADER
    header[0x202 - base : 0x206 - base] = _HEADER_MAGIC
    struct.pack_into("<H", header, 0x206 - base, 0x020F)
    struct.pack_into("<I", header, 0x238 - base, layout.COMMAND_LINE_LIMIT - 1)
    return bytes(header)


def _write_tables(memory: "Memory") -> None:
    memory.write(layout.TABLES, struct.pack("<Q", layout.TABLES + 0x1000 | 3))
    memory.write(layout.TABLES + 0x1000, struct.pack("<Q", layout.TABLES + 0x2000 | 3))
    memory.write(layout.TABLES + 0x2000, struct.pack("<512Q", *(i << 21 | 0x83 for i in range(512))))
    memory.write(layout.GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
