"""Whatever stands where in a file of a stranger's, its reader gives its value or one line."""

import copy
import json
import random
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tests.support.written_records import written

from thinbox.audit.baseline import compare_with_baseline, make_baseline
from thinbox.records.audit import AuditEntry, AuditRecord
from thinbox.container.config import parse_config
from thinbox.cost.profiles import FOLDER, load_profile
from thinbox.cost.sound_trace import require_sound
from thinbox.cost.workload import load_workload
from thinbox.errors import InputError
from thinbox.isolation.policies.profile import Profile, build_profile
from thinbox.planning.evidence import ATTACK_SCHEMA, RUN_SCHEMA, gather_evidence, load_object
from thinbox.planning.make_plan import PlanOptions, make_plan
from thinbox.planning.profile_file import load_profile as load_seccomp
from thinbox.planning.profile_import import compare_profile
from thinbox.sandbox.plan_text import render_plan
from thinbox.records.events import PageTrace
from thinbox.records.profile import KnownPages

ROUNDS = 250
RECORDS = written()
RUN = next(record for record in RECORDS.values() if record["schema"] == RUN_SCHEMA)
ATTACK = next(record for record in RECORDS.values() if record["schema"] == ATTACK_SCHEMA)
SECCOMP = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read", "write", "nonsense"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {"caps": ["X"]}},
        {
            "name": "open",
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "op": "SCMP_CMP_EQ"}],
            "excludes": {"arches": ["arm"], "caps": ["Y"]},
        },
    ],
}
CONFIG = {
    "os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": ["sha256:" + "0" * 64]},
    "config": {"Entrypoint": ["a"], "Cmd": ["b"], "Env": ["A=b"], "User": "1", "WorkingDir": "/x", "Volumes": {"/v": {}}},
}  # fmt: skip
PROFILE = json.loads(
    build_profile(
        [("read", 4096, "f"), ("write", 8192, "g")],
        "ab" * 32,
        known={"read": {"code": [1], "data": ["0x1000"]}},
        text_start=4096,
    )
)


def audited() -> AuditRecord:
    entry = AuditEntry("pipe", "x", True, exercised=True, same=True, code_faults=5)
    return AuditRecord("6.1", "ab", "sci", [entry], ("pipe",), {})


BASELINE = json.loads(make_baseline(audited()))
ODD = (
    None, True, -1, 0, 3.5, 1 << 63, -(1 << 63), (1 << 64) - 1, 1e300, "", "x", "\udcff", "\0", "\n\x1b[2J", "9" * 5000, [], {},
    [[]], [None], {"": None}, {"a": {"a": []}}, [1, 2, 3], ["x"] * 3,
)  # fmt: skip


def places(value: object, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def broken(value: object, rng: random.Random) -> object:
    """A copy with one or two things replaced by something odd, or left out."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        *way, last = rng.choice(places(value) or [("x",)])
        try:
            inner = value
            for key in way:
                inner = inner[key]
            if rng.random() < 0.2:
                del inner[last]
            else:
                inner[last] = copy.deepcopy(rng.choice(ODD))
        except (KeyError, IndexError, TypeError):
            pass
    return value


def plan_of(path: Path) -> None:
    run = load_object(path, RUN_SCHEMA)
    evidence = gather_evidence([run], [ATTACK])
    render_plan(make_plan(evidence, PlanOptions("x", True, True, ())))
    render_plan(make_plan(evidence, PlanOptions("x", False, False, ())))


def attack_evidence(path: Path) -> None:
    gather_evidence([RUN], [load_object(path, ATTACK_SCHEMA)])


READERS = {
    "cost": (RUN, load_workload),
    "plan": (RUN, plan_of),
    "plan, attacks": (ATTACK, attack_evidence),
    "import": (
        SECCOMP,
        lambda path: compare_profile(load_seccomp(path), {"read": [(0,) * 6]}).render(),
    ),
    "import of a config.json": (
        {"linux": {"seccomp": SECCOMP}},
        lambda path: compare_profile(load_seccomp(path), {"read": [(0,) * 6]}).render(),
    ),
    "image": (CONFIG, lambda path: parse_config(path.read_bytes(), "config")),
    "policy profile": (PROFILE, lambda path: Profile.from_json(path.read_bytes())),
    "prefault": (PROFILE, KnownPages.load),
    "baseline": (BASELINE, lambda path: compare_with_baseline(audited(), path.read_bytes())),
}
TEXTS = [
    b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"[NaN]", b"[1e999]", b'"\\ud800"', b"\xff", b"\xef\xbb\xbf{}",
    b'{"schema": 1, "schema": 2}', b"null", b"3", b'"x"', b"[]", b"{}",
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "x.json").touch(0o644)
    (tmp_path / "x.json").chmod(0o644)
    return tmp_path / "x.json"


@pytest.mark.parametrize("reader", READERS)
def test_what_is_whole_is_read(path: Path, reader: str) -> None:
    whole, read = READERS[reader]
    path.write_text(json.dumps(whole))
    read(path)


@pytest.mark.parametrize("reader", READERS)
def test_text_that_breaks_parsers_is_one_line(path: Path, reader: str) -> None:
    _whole, read = READERS[reader]
    for text in TEXTS:
        path.write_bytes(text)
        if text in (b"{}", b"[]") and reader == "image":
            continue  # an image's config may say nothing
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_anything_anywhere_is_read_or_one_line(path: Path, reader: str) -> None:
    whole, read = READERS[reader]
    rng = random.Random(reader)
    for _ in range(ROUNDS):
        value = broken(whole, rng)
        path.write_text(json.dumps(value))
        try:
            read(path)
        except InputError as error:
            assert "\n" not in str(error), value
        except Exception as error:
            raise AssertionError(json.dumps(value)[:3000]) from error


def as_toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def test_a_cpu_with_anything_anywhere_is_read_or_one_line(tmp_path: Path) -> None:
    source = FOLDER / "zen-2.toml"
    whole = tomllib.loads(source.read_text())
    rng = random.Random(2)
    path = tmp_path / "cpu.toml"
    shutil.copy(source, path)
    load_profile(path)
    for _ in range(ROUNDS):
        value = broken(whole, rng)
        try:
            path.write_text("".join(f"{json.dumps(key)} = {as_toml(inner)}\n" for key, inner in value.items()))
            load_profile(path).geometry()
        except (InputError, UnicodeEncodeError) as error:
            assert "\n" not in str(error)
    path.write_text(source.read_text().replace("entries = ", "entries = 0x4000_0000 # "))
    with pytest.raises(InputError, match="no TLB has more than"):
        load_profile(path)


# -- traces: compiled code follows them ---------------------------------------------------------------------


def small_trace(**changes: object) -> PageTrace:
    """Open call 0, be granted a page, touch code and data."""
    fields = {
        "stream": np.array([0, 1, 2, 3], np.int32),
        "words": np.array([0 << 4 | 2 << 2 | 2, 0 << 4 | 1 << 2 | 2, 5 << 2, 6 << 2 | 1], np.int64),
        "shifts": np.array([0, 0, 12, 21], np.int8),
        "users": np.array([0, 0, 0, 1], np.int8),
        "grants": np.array([[0, 5, 1]], np.int64),
    }
    return PageTrace(**(fields | changes))


HOSTILE = {
    "an index behind the words": {"stream": np.array([4], np.int32)},
    "an index before them": {"stream": np.array([-1], np.int32)},
    "a call that is not there": {"words": np.array([1 << 4 | 2 << 2 | 2, 6, 20, 25], np.int64)},
    "a call far before": {"words": np.array([-(1 << 40) << 4 | 2 << 2 | 2, 6, 20, 25], np.int64)},
    "a kind that is none": {"words": np.array([10, 6, 20, 27], np.int64)},
    "more grants than rows": {"stream": np.array([1, 1, 1], np.int32)},
    "a grant of no call": {"grants": np.array([[1, 5, 1]], np.int64)},
    "a grant of no kind": {"grants": np.array([[0, 5, 7]], np.int64)},
    "a page of no size": {"shifts": np.array([0, 0, 0, 21], np.int8)},
    "a shift of a strangers": {"shifts": np.array([0, 0, 12, 63], np.int8)},
    "fewer shifts than words": {"shifts": np.array([0], np.int8)},
    "fewer users than words": {"users": np.array([0], np.int8)},
    "wider indexes": {"stream": np.array([0], np.int64)},
    "floats": {"words": np.array([0.5] * 4)},
    "another shape": {"stream": np.zeros((2, 2), np.int32)},
    "rows of two": {"grants": np.zeros((1, 2), np.int64)},
}


def test_a_trace_that_stays_within_its_arrays_is_taken(tmp_path: Path) -> None:
    require_sound(small_trace(), 1, tmp_path)
    empty = {
        name: np.zeros(0, kind)
        for name, kind in (("stream", np.int32), ("words", np.int64), ("shifts", np.int8), ("users", np.int8))
    }
    require_sound(small_trace(**empty, grants=np.zeros((0, 3), np.int64)), 0, tmp_path)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_trace_that_would_lead_compiled_code_outside_its_arrays_is_refused(tmp_path: Path, what: str) -> None:
    run = copy.deepcopy(RUN) | {"events": {"columns": [], "calls": [], "references": {"file": "x.trace"}}}
    run["calls"] = run["calls"][:1]
    (tmp_path / "x.json").write_text(json.dumps(run))
    small_trace().save(tmp_path / "x.trace")
    assert load_workload(tmp_path / "x.json").trace is not None
    small_trace(**HOSTILE[what]).save(tmp_path / "x.trace")
    with pytest.raises(InputError, match="damaged, or belongs to another run"):
        load_workload(tmp_path / "x.json")


def test_a_trace_that_is_a_bomb_or_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from thinbox.records import events

    pack = zstandard.ZstdCompressor().compress
    packed = io.BytesIO()
    np.savez_compressed(packed, stream=np.zeros(1 << 20, np.int32))
    header = bytes.fromhex("28b52ffd") + bytes([0xE0]) + (1 << 50).to_bytes(8, "little")
    for data in (b"", b"x", pack(b""), pack(b"x" * 100), pack(packed.getvalue()), header + b"\1\0\0"):
        (tmp_path / "t").write_bytes(data)
        with pytest.raises(InputError, match="is not a trace"):
            PageTrace.load(tmp_path / "t")
    monkeypatch.setattr(events, "_LARGEST_TRACE_BYTES", 8 << 20)
    (tmp_path / "t").write_bytes(pack(bytes(64 << 20)))
    with pytest.raises(InputError, match="unpacks to more than 8 MiB"):
        PageTrace.load(tmp_path / "t")
