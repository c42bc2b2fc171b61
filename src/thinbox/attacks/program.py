"""The program an attacker wants to have run as root: it shows who it is, and the victim's file."""

from typing import TYPE_CHECKING

from thinbox.attacks.scenario import HOME, PRIVATE_FILE, SECRET_BYTES
from thinbox.harness.process import Steps

if TYPE_CHECKING:
    from thinbox.attacks.attacker import Attacker

PROGRAM = f"{HOME}/x"
_OUTPUT = f"{HOME}/out"
_SCRIPT = f"""#!/bin/sh
exec >{_OUTPUT}
/bin/busybox id -u
/bin/busybox cat {PRIVATE_FILE}
/bin/busybox chmod 644 {_OUTPUT}
"""
_O_CREAT_WRONLY = 0o101


def write_program(attacker: "Attacker") -> Steps:
    """Write the program to the attacker's folder."""
    handle = yield from attacker.must("open", PROGRAM, _O_CREAT_WRONLY, 0o755)
    data = _SCRIPT.encode()
    yield from attacker.must("write", handle, attacker.buffer(data), len(data))
    yield from attacker.must("close", handle)


def output_of_program(attacker: "Attacker") -> Steps:
    """Whether the program ran as root and read the victim's file, by what it wrote."""
    handle = yield from attacker.call("open", _OUTPUT, 0, 0)
    if handle < 0:
        return False
    place = attacker.buffer(64)
    count = yield from attacker.call("read", handle, place, 2 + SECRET_BYTES)
    return attacker.read(place, max(count, 0)) == b"0\n" + attacker.victim.file_secret
