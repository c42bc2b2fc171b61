"""A type checker sees the API: a correct program passes mypy --strict, and wrong ones are told where they are wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
SAMPLE = Path(__file__).parent / "sample.py"


def mypy(path, tmp_path):
    words = [
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        tmp_path / "cache",
        "--config-file",
        SOURCE.parent / "pyproject.toml",
        path,
    ]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, words)],
        env=os.environ | {"MYPYPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.parametrize("wrong", [False, True])
def test_a_type_checker_sees_the_api(tmp_path, wrong):
    text = SAMPLE.read_text()
    mistakes = {
        'policy="live"': "policy=3",
        "result.exit_code + 1": "result.exit_code.lower()",
        's.memory.read(s.symbols["init_cred"], 64)': 's.memory.read("init_cred", 64)',
        "kaslr_seed=3": "seed=3",
        "plan=plan)": "plann=plan)",
    }
    if wrong:
        for right, mistaken in mistakes.items():
            assert right in text
            text = text.replace(right, mistaken, 1)
    path = tmp_path / "program.py"
    path.write_text(text)
    done = mypy(path, tmp_path)
    if not wrong:
        assert done.returncode == 0, done.stdout
        return
    told = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(told) >= len(mistakes), done.stdout
    for mistaken in mistakes.values():
        number = next(n for n, line in enumerate(text.splitlines(), 1) if mistaken in line)
        assert any(f":{number}:" in line for line in told), (mistaken, done.stdout)


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "thinbox" / "py.typed").exists()
