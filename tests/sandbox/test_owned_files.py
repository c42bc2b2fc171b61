"""Descriptors of files a sandbox owns: each process's own, gone with it, and none of whoever had its number before."""

import errno

import pytest
from thinbox.sandbox.call_error import CallError
from thinbox.sandbox.owned_files import FIRST_DESCRIPTOR, Files, OpenFile
from thinbox.sandbox.plan import OwnedFile

FILE = OwnedFile("/etc/conf", b"text")


def opened(files, process):
    return files.add(process, OpenFile(FILE, 1000), close_on_exec=False)


def test_a_child_has_copies_and_goes_its_own_way():
    files = Files((FILE,))
    number = opened(files, 10)
    files.forked(10, 11)
    assert files.find(11, number).open is files.find(10, number).open
    files.close(11, number)
    assert files.find(10, number)


def test_with_its_last_task_a_processs_descriptors_go():
    files = Files((FILE,))
    number = opened(files, 10)
    files.ended(10)
    with pytest.raises(CallError) as error:
        files.find(10, number)
    assert error.value.errno == errno.EBADF


def test_a_number_that_is_used_again_inherits_from_its_parent_alone():
    files = Files((FILE,))
    opened(files, 11)
    files.forked(10, 11)
    with pytest.raises(CallError):
        files.find(11, FIRST_DESCRIPTOR)
    files.forked(11, 11)
