"""What a guest starts on: the parts of a kernel that the agent's first calls ask for, each by a function of its own.

Why it exists: a kernel of one's own is often small, and one without a serial console boots to nothing, without a word.

Rules of this file: only functions with names of their own are asked for, those that a compiler cannot put into others
because their address is taken; distribution kernels have them all.

Source: guest/setup.py (what is mounted and opened); drivers/tty/serial/8250/8250_core.c, init/initramfs.c,
fs/binfmt_elf.c, drivers/base/devtmpfs.c, mm/shmem.c, fs/proc/root.c, fs/sysfs/mount.c, drivers/tty/pty.c,
net/ipv4/af_inet.c.
"""

from thinbox.kernel.probe import Probe

DISABLES = "the agent in the guest cannot start, or cannot be talked to"
PARTS = (
    (("univ8250_console_setup", "serial8250_console_setup"), "CONFIG_SERIAL_8250_CONSOLE=y"),
    (("unpack_to_rootfs", "populate_rootfs"), "CONFIG_BLK_DEV_INITRD=y"),
    (("load_elf_binary",), "CONFIG_BINFMT_ELF=y"),
    (("devtmpfsd", "devtmpfs_init"), "CONFIG_DEVTMPFS=y"),
    (("shmem_fill_super",), "CONFIG_SHMEM=y"),
    (("proc_root_lookup", "proc_get_tree"), "CONFIG_PROC_FS=y"),
    (("sysfs_init_fs_context", "sysfs_get_tree"), "CONFIG_SYSFS=y"),
    (("ptmx_open",), "CONFIG_UNIX98_PTYS=y"),
    (("inet_create",), "CONFIG_INET=y"),
)
"""Functions, of which one is enough, and the option that builds them."""


def probe_start(probe: Probe) -> None:
    """Note in `probe` what the agent would look for and not find."""
    for functions, _option in PARTS:
        if not any(map(probe.has_variant, functions)):
            probe.lacks(" or ".join(functions))
