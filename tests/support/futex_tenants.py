"""Tenants that meet in the kernel's 256 chains of futexes: five wait, the sixth wakes 240 addresses of its own.

Some of those hash to a chain that another waits in.
"""

from tests.support.call_program import DATA, Step, build_program

from thinbox.session.options import TenantSpec

WAKER = "t5"


def futex_tenants(folder, policy="live", **options):
    """The specs; `policy` is that of those who wait."""
    waits = [Step("clock_gettime", (1, DATA + 64)), Step("futex", (DATA + 1024, 0x80, 0, DATA + 64, 0, 0))]
    wakes = [Step("futex", (DATA + 1024 + 4 * number, 0x81, 1, 0, 0, 0)) for number in range(240)]
    specs = []
    for number in range(6):
        name, root = f"t{number}", folder / str(number)
        root.mkdir()
        (root / "program").write_bytes(build_program(*(wakes if name == WAKER else waits)))
        (root / "program").chmod(0o755)
        specs.append(
            TenantSpec(name, ("/program",), policy="live" if name == WAKER else policy, rootfs=root, **options)
        )
    return specs
