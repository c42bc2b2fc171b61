"""The table agrees with the kernel's own headers and answers as its callers expect."""

import dataclasses
import re
from pathlib import Path

import pytest

from thinbox.errors import InputError
from thinbox.syscalls import table
from thinbox.syscalls.table import (
    MAX_ARGUMENTS,
    ArgKind,
    Argument,
    all_calls,
    call_info,
    call_name,
    call_number,
)

HEADERS = [
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm/unistd_64.h"),
]


def test_read_takes_a_descriptor_a_buffer_to_fill_and_a_size() -> None:
    info = call_info(0)
    assert info is not None
    assert (info.nr, info.name) == (0, "read")
    assert info.args == (
        Argument("fd", ArgKind.FD),
        Argument("buf", ArgKind.PTR_OUT),
        Argument("count", ArgKind.SIZE),
    )


@pytest.mark.parametrize(
    ("nr", "name", "kinds"),
    [
        (1, "write", "fd ptr_in size"),
        (9, "mmap", "vaddr size flags flags fd offset"),
        (42, "connect", "fd sockaddr size"),
        (45, "recvfrom", "fd ptr_out size flags sockaddr_out ptr_inout"),
        (59, "execve", "path argv argv"),
        (62, "kill", "pid signal"),
        (95, "umask", "mode"),
        (231, "exit_group", "int"),
        (257, "openat", "dirfd path flags mode"),
        (332, "statx", "dirfd path flags flags ptr_out"),
        (435, "clone3", "ptr_inout size"),
        (462, "mseal", "vaddr size flags"),
    ],
)
def test_well_known_calls_have_their_arguments(nr: int, name: str, kinds: str) -> None:
    info = call_info(nr)
    assert info is not None
    assert info.name == name
    assert [argument.kind.value for argument in info.args] == kinds.split()


def test_names_and_numbers_are_each_others_inverse() -> None:
    for info in all_calls():
        assert call_number(info.name) == info.nr
        assert call_name(info.nr) == info.name
        assert call_info(info.nr) == info


def test_the_table_has_every_number_up_to_462_that_was_given_out() -> None:
    numbers = {info.nr for info in all_calls()}
    assert set(range(336)) | set(range(424, 463)) <= numbers
    assert not numbers & set(range(336, 424))


def test_numbers_agree_with_the_kernel_headers_installed_here() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers on this machine: apt install linux-libc-dev")
    pairs = re.findall(r"#define __NR_(\w+) (\d+)", header.read_text(encoding="ascii"))
    assert len(pairs) > 300
    known = {info.nr: info.name for info in all_calls()}
    for name, nr in pairs:
        if int(nr) <= max(known):  # headers may be newer than the table
            assert known[int(nr)] == name


def test_no_call_has_more_arguments_than_registers_or_one_name_twice() -> None:
    for info in all_calls():
        names = [argument.name for argument in info.args]
        assert len(names) <= MAX_ARGUMENTS
        assert len(names) == len(set(names)), info.name
        assert all(name.isidentifier() for name in names), info.name


def test_every_kind_is_used() -> None:
    assert {argument.kind for info in all_calls() for argument in info.args} == set(ArgKind)


def test_pointers_are_what_the_kernel_dereferences() -> None:
    assert ArgKind.PTR_OUT.is_pointer
    assert ArgKind.PATH.is_pointer
    assert not ArgKind.VADDR.is_pointer
    assert not ArgKind.FD.is_pointer


def test_unknown_numbers_have_no_info_and_a_number_for_a_name() -> None:
    for nr in (-1, 400, 512, 100_000):
        assert call_info(nr) is None
        assert call_name(nr) == f"#{nr}"


def test_a_misspelled_name_is_answered_with_the_closest_one() -> None:
    with pytest.raises(InputError, match=r"'opennat'.*openat") as caught:
        call_number("opennat")
    assert "\n" not in str(caught.value)


def test_a_hopeless_name_still_gets_an_answer_of_one_line() -> None:
    with pytest.raises(InputError, match="syscalls"):
        call_number("\n\n@@@@")


def test_infos_cannot_be_changed() -> None:
    info = call_info(0)
    assert info is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.nr = 1  # type: ignore[misc]


def test_the_first_lookup_builds_one_call_and_reads_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of every start; what it takes in seconds, `thinbox bench` tells."""
    read, text_of = [], Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, *rest, **more: read.append(path) or text_of(path, *rest, **more)
    )
    for cached in (table._table, table._build_info):
        cached.cache_clear()
    assert call_info(257) is not None
    assert read == [table._DATA_FILE]
    assert table._build_info.cache_info().currsize == 1
    assert call_info(257) is call_info(257) and read == [table._DATA_FILE]
