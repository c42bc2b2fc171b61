"""Every guest-physical address the boot puts something at (Documentation/arch/x86/boot.rst, 64-bit protocol).

Below 1 MiB all is ours until the kernel runs; the memory map hides 0x9FC00 to 1 MiB, as firmware does.
"""

GDT = 0x500
ZERO_PAGE = 0x7000
TABLES = 0x9000
"""PML4, then PDPT at +0x1000, then one PD at +0x2000: 512 pages of 2 MiB map the first GiB."""
RNG_SEED = 0x10000
COMMAND_LINE = 0x20000
COMMAND_LINE_LIMIT = 2048
LOW_MEMORY_END = 0x9FC00
HIGH_MEMORY = 0x100000

ZERO_PAGE_E820_COUNT = 0x1E8
ZERO_PAGE_E820 = 0x2D0
ZERO_PAGE_HEADER = 0x1F1
HEADER_TYPE_OF_LOADER = 0x210
HEADER_CODE32_START = 0x214
HEADER_RAMDISK_IMAGE = 0x218
HEADER_COMMAND_LINE = 0x228
HEADER_SETUP_DATA = 0x250
HEADER_KERNEL_ALIGNMENT = 0x230
HEADER_PREFERRED_ADDRESS = 0x258
HEADER_INIT_BYTES = 0x260
ENTRY_64 = 0x200
"""Where the 64-bit entry of a bzImage's protected-mode part is."""
SECTOR_BYTES = 512
ZERO_PAGE_LAST_PAD = 0xFF8
"""The last word of `_pad9` of struct boot_params, which no kernel gives a meaning."""
LOADER_UNDEFINED = 0xFF
E820_RAM = 1
SETUP_RNG_SEED = 9
"""arch/x86/include/uapi/asm/bootparam.h"""
