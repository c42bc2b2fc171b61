"""Compiled hooks come out of the cache whole, or are made again; the fast paths do what the hooks do."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thinbox.machine import native, slots
from thinbox.machine.thunks import block_thunk, executable

_BLOCK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p)


def test_a_second_process_loads_the_hooks_without_numba() -> None:
    native.hook_address("on_block")
    code = (
        "import sys; from thinbox.machine.machine import Machine; Machine(96); "
        "sys.exit('numba' in sys.modules or 'numba.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_the_same_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.o"
    native._store(path, {"on_block": "symbol"}, b"code" * 100)
    assert native._read(path) == ({"on_block": "symbol"}, b"code" * 100)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-7] ^= 1
    path.write_bytes({"cut": whole[:-9], "flipped": bytes(flipped), "empty": b"", "other": b"\x7fELF" + whole}[damage])
    assert native._read(path) is None


@pytest.mark.parametrize(("writable", "compilations"), [(False, 2), (True, 1)])
def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool, compilations: int
) -> None:
    """Each process compiles, and goes on with what it compiled; where the cache can be written, the first alone."""
    if not writable:
        (tmp_path / "cache").write_text("no folder")
    made = ({"on_block": "symbol"}, b"code")
    compiled, linked = [], []
    monkeypatch.setattr(native, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(native, "_compile_hooks", lambda: compiled.append(1) or made)
    monkeypatch.setattr(native, "_link", lambda *found: linked.append(found))
    for _process in range(2):
        native._load_hooks()
    assert len(compiled) == compilations
    assert linked == [made, made]


def _counted(address: int, core: np.ndarray, vaddr: int, size: int) -> list[int]:
    copy = core.copy()
    stops: list[int] = []
    stop = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
        lambda *_rest: stops.append(1) or 0
    )
    env = np.zeros(64, dtype=np.int64)
    copy[slots.ENV], copy[slots.EMU_STOP] = env.ctypes.data, ctypes.cast(stop, ctypes.c_void_p).value
    copy[slots.OFF_EFLAGS], copy[slots.OFF_HFLAGS] = 8, 16
    env[1] = int(core[slots.SCRATCH])
    _BLOCK(address)(0, vaddr, size, copy.ctypes.data)
    copy[slots.ENV] = copy[slots.EMU_STOP] = 0
    return [*copy.tolist(), len(stops)]


@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("flags", [0, 1 << 9])
@pytest.mark.parametrize("clock", [0, 99, 100, 101])
@pytest.mark.parametrize("vaddr", [0x1000, -0x7F000000])
def test_the_fast_path_of_a_block_leaves_what_the_hook_leaves(waiting: int, flags: int, clock: int, vaddr: int) -> None:
    hook = native.hook_address("on_block")
    code = executable(block_thunk(hook))
    core = np.zeros(slots.SLOT_COUNT, dtype=np.int64)
    core[slots.CLOCK], core[slots.DEADLINE], core[slots.IRQ_WAITING] = clock, 100, waiting
    core[slots.ATTENTION] = 0 if waiting else 100
    core[slots.SCRATCH] = flags
    expected = _counted(hook, core, vaddr, 17)
    assert _counted(int(code.ctypes.data), core, vaddr, 17) == expected
    stopped = bool(waiting and flags) or clock >= 100
    assert expected[-1] == stopped
    assert expected[slots.CLOCK] == clock + (0 if stopped else 17)
