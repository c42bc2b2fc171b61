"""What modules bring to programs: sockets between host and guest (looped back), netfilter's tables, loop devices."""

import struct

import pytest
from tests.support.call_program import DATA, Step, build_program, load_word, results
from thinbox.session.session import RunOptions, run

WAYS = ({"isolate": "none"}, {"policy": "live"}, {"policy": "live+guard", "view": "strict"})
AF_VSOCK, AF_NETLINK, SOCK_STREAM, SOCK_RAW, NETLINK_NETFILTER = 40, 16, 1, 3, 12
LOCAL, PORT = 1, 5000
ANSWER = DATA + 1536


def run_every_way(guest, command: list[str], ways=WAYS, **options) -> bytes:
    """Return what it prints, the same un-isolated and under the policies."""
    found = [run(guest, command, RunOptions(**way | options)) for way in ways]
    for way, result in zip(ways, found, strict=True):
        assert not result.record.kills, (way, result.record.kills)
        assert (result.stdout, result.stderr, result.exit_code) == (found[0].stdout, found[0].stderr, 0), way
        assert bool(result.record.totals["isolated"]) is (way.get("isolate") != "none")
    return found[0].stdout


@pytest.fixture
def program(tmp_path):
    def write(image: bytes):
        (tmp_path / "program").write_bytes(image)
        (tmp_path / "program").chmod(0o755)
        return tmp_path

    return write


def test_a_vsock_is_looped_back(guest, program):
    address = struct.pack("<HHII4x", AF_VSOCK, 0, PORT, LOCAL)
    root = program(
        build_program(
            Step("socket", (AF_VSOCK, SOCK_STREAM, 0)),
            Step("bind", (3, DATA + 512, 16)),
            Step("listen", (3, 1)),
            Step("socket", (AF_VSOCK, SOCK_STREAM, 0)),
            Step("connect", (4, DATA + 512, 16)),
            Step("accept", (3, 0, 0)),
            Step("write", (4, DATA + 640, 5)),
            Step("read", (5, ANSWER, 16)),
            load_word(ANSWER),
            data={512: address, 640: b"hello"},
        )
    )
    shown = results(run_every_way(guest, ["/program"], rootfs=root, modules=("vsock_loopback",)))
    assert shown == [3, 0, 0, 4, 0, 5, 5, 5, int.from_bytes(b"hello", "little")]
    without = results(run(guest, ["/program"], RunOptions(rootfs=root)).stdout)
    assert without[0] == -97  # EAFNOSUPPORT


def message(kind: int, flags: int, content: bytes, subsystem: int = 0) -> bytes:
    """A message of nfnetlink (include/uapi/linux/netfilter/nfnetlink.h), family IPv4."""
    body = struct.pack(">BBH", 2, 0, subsystem) + content
    return struct.pack("<IHHII", 16 + len(body), kind, flags, 1, 0) + body


def test_a_table_of_nf_tables_is_made_and_found(guest, program):
    begin, end, tables = 0x10, 0x11, 10
    request, acknowledge, create = 1, 4, 0x400
    name = struct.pack("<HH", 8, 1) + b"box\0"
    batch = message(begin, request, b"", tables) + message(tables << 8, request | acknowledge | create, name)
    batch += message(end, request, b"", tables)
    ask = message(tables << 8 | 1, request, name)
    root = program(
        build_program(
            Step("socket", (AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER)),
            Step("sendto", (3, DATA + 512, len(batch), 0, 0, 0)),
            Step("recvfrom", (3, ANSWER, 256, 0, 0, 0)),
            load_word(ANSWER + 16),
            Step("sendto", (3, DATA + 768, len(ask), 0, 0, 0)),
            Step("recvfrom", (3, ANSWER, 256, 0, 0, 0)),
            load_word(ANSWER + 20),
            data={512: batch, 768: ask},
        )
    )
    shown = results(run_every_way(guest, ["/program"], rootfs=root, modules=("nf_tables",)))
    assert shown[:2] == [3, len(batch)] and shown[3] & 0xFFFFFFFF == 0
    assert shown[4] == len(ask) and struct.pack("<q", shown[6]) == name


LOOP = """
dd if=/dev/zero of=/tmp/image bs=1M count=1 2>/dev/null
device=$(losetup -f); losetup $device /tmp/image && mke2fs $device >/dev/null; mkdir /tmp/m
for text in one two; do mount -t ext2 $device /tmp/m && cat /tmp/m/* 2>/dev/null; echo $text > /tmp/m/$text; umount /tmp/m; done
losetup -d $device; grep -q two /tmp/image && echo held
"""


def test_a_loop_device_holds_a_file_system(guest):
    """Not under view strict: requests of block devices lie in pages of which it cannot be told whose they are (V5)."""
    ways = ({"isolate": "none"}, {"policy": "live"}, {"policy": "live+guard", "view": "permissive"})
    assert run_every_way(guest, ["sh", "-c", LOOP], ways, modules=("loop",)) == b"one\nheld\n"


def test_under_view_strict_a_request_of_a_block_device_is_refused(guest):
    """A limit that the documents state: whoever lifts it, changes them."""
    script = "dd if=/dev/zero of=/tmp/image bs=64k count=1; losetup /dev/loop0 /tmp/image; dd if=/dev/zero of=/dev/loop0 bs=4k count=1 conv=fsync"
    options = RunOptions(policy="live+guard", view="strict", on_violation="stop", modules=("loop",))
    kills = run(guest, ["sh", "-c", script], options).record.kills
    assert [kill.rule for kill in kills] == ["V5"]
