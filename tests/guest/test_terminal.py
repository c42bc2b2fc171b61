"""A tenant's terminal: the guest kernel's own, with job control, sizes and line discipline; isolated, nothing killed."""

import json
import os
import time

import pytest
from thinbox.guest.terminal import Terminal
from thinbox.session.session import RunOptions, Session, run

LIMIT_S = 60
"""Host time; what these tests wait for takes a few seconds."""


def typed(text: bytes):
    """A stream on which `text` has been typed, and then the other end closed."""
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return os.fdopen(reader, "rb", buffering=0)


def run_on_terminal(guest, command, text=b"", **terminal):
    with typed(text) as stdin:
        result = run(guest, command, RunOptions(stdin=stdin, terminal=Terminal(**terminal)))
    totals = result.record.totals
    assert totals["isolated"] == totals["calls"] > 0
    assert totals["killed"] == 0
    assert totals["tables_made"] == totals["tables_freed"]
    return result


def test_stdio_is_one_terminal_of_the_size_asked_for(guest):
    script = "tty; stty size; tty <&1; tty <&2; tty </dev/tty; echo err >&2"
    result = run_on_terminal(guest, ["sh", "-c", script], rows=33, columns=101)
    assert result.stdout.splitlines() == [b"/dev/pts/0", b"33 101", b"/dev/pts/0", b"/dev/pts/0", b"/dev/tty", b"err"]
    assert result.stderr == b""


def test_stderr_may_stay_a_pipe(guest):
    result = run_on_terminal(guest, ["sh", "-c", "echo out; echo err >&2; test -t 1; test -t 2"], stderr=False)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\r\n", b"err\n", 1)


def test_the_tenant_leads_a_session_with_its_terminal_as_controlling_one(guest):
    result = run_on_terminal(guest, ["sh", "-c", "cut -d' ' -f5-8 /proc/$$/stat; echo $$"])
    group_session_tty_foreground, pid = result.stdout.split(b"\r\n")[:2]
    group, session, number, foreground = group_session_tty_foreground.split()
    assert group == session == foreground == pid
    assert int(number) == 136 << 8, "pts/0 (Documentation/admin-guide/devices.txt)"


def test_lines_are_edited_by_the_line_discipline_and_echoed(guest):
    # wrong, erased by Ctrl-U; a character of two bytes, erased as a whole by one DEL
    result = run_on_terminal(guest, ["sh", "-c", 'read a; echo "<$a>"'], b"wrong\x15ab\xc3\xa9\x7fc\n")
    assert result.stdout.endswith(b"<abc>\r\n")
    assert result.stdout.startswith(b"wrong")


def test_the_end_of_input_is_a_ctrl_d_also_in_the_middle_of_a_line(guest):
    result = run_on_terminal(guest, ["wc", "-c"], b"one\nhalf")
    assert result.stdout.endswith(b"half8\r\n")


def test_more_input_than_the_kernel_holds_arrives_whole(guest):
    lines = b"".join(b"%059d\n" % number for number in range(1000))
    result = run_on_terminal(guest, ["sh", "-c", "stty -echo; sleep 1; cat | md5sum; echo done"], lines)
    import hashlib

    assert hashlib.md5(lines).hexdigest().encode() in result.stdout


def test_raw_mode_takes_every_byte(guest):
    text = bytes(range(256))
    script = "stty raw -echo; echo ready; dd bs=1 count=256 2>/dev/null | od -An -v -tu1"
    result = run_when_ready(guest, ["sh", "-c", script], [(b"ready", text)])
    numbers = [int(word) for word in result.stdout.split(b"ready")[-1].split()]
    assert numbers == list(text)


@pytest.mark.parametrize("isolate", ["all", "none"])
def test_two_runs_on_a_terminal_are_the_same(guest, isolate):
    records = []
    for _ in range(2):
        options = RunOptions(terminal=Terminal(), isolate=isolate)
        result = run(guest, ["sh", "-c", "stty -a; ls --color /; (sleep 2; echo late) & wait"], options)
        data = result.record.to_json()
        del data["totals"]["wall_s"], data["totals"]["fault_us_median"]
        records.append((result.stdout, json.dumps(data)))
    assert records[0] == records[1]
    assert b"late" in records[0][0]


def run_when_ready(guest, command, steps, **terminal):
    """Type each step's keys when its text has been printed since the step before; a (rows, columns) resizes."""
    reader, writer = os.pipe()
    shown, waiting = bytearray(), list(steps)
    sessions = []

    def on_output(_stream, data):
        shown.extend(data)
        seen.extend(data)
        while waiting and waiting[0][0] in seen:
            text, keys = waiting.pop(0)
            del seen[: seen.index(text) + len(text)]
            if isinstance(keys, tuple):
                sessions[0].resize(*keys)
            else:
                os.write(writer, keys)

    seen = bytearray()
    with os.fdopen(reader, "rb", buffering=0) as stdin:
        session = Session.alone(
            guest, command, RunOptions(stdin=stdin, terminal=Terminal(**terminal), on_output=on_output)
        )
        sessions.append(session)
        end = time.monotonic() + LIMIT_S

        def check() -> None:
            assert time.monotonic() < end, (waiting, bytes(shown))

        session.machine.check_signals = check
        result = session.run()["tenant"]
    os.close(writer)
    assert not waiting, (waiting, bytes(shown))
    assert result.record.totals["killed"] == 0
    assert result.record.totals["isolated"] == result.record.totals["calls"]
    return type(result)(result.exit_code, bytes(shown), b"", result.record, result.console)


def test_job_control_of_an_interactive_shell(guest):
    # The job says when it runs: a key that comes before it is in the foreground is the shell's.
    job = "trap 'echo go''es on' CONT; echo st''arted; while :; do sleep 1; done"
    start = f"cat >/tmp/job <<'E'\n{job}\nE\nexec sh -i"
    steps = [
        (b"# ", b"sh /tmp/job\n"),
        (b"started", b"\x1a"),
        (b"# ", b"jobs\n"),
        (b"Stopped", b"bg\n"),
        (b"goes on", b"jobs\n"),
        (b"Running", b"fg\n"),
        (b"sh /tmp/job", b""),
        (b"goes on", b"\x03"),
        (b"# ", b"echo status $?\n"),
        (b"status 130", b"\x04"),
    ]
    result = run_when_ready(guest, ["sh", "-c", start], steps)
    assert b"can't access tty" not in result.stdout
    assert result.exit_code == 0, "the status of the last command"


def test_ctrl_c_reaches_a_tenant_that_computes(guest):
    started = time.monotonic()
    result = run_when_ready(guest, ["sh", "-c", "echo ready; while :; do :; done"], [(b"ready", b"\x03")])
    assert result.exit_code == 128 + 2
    assert time.monotonic() - started < 60


def test_a_resize_is_seen_and_signalled(guest):
    script = "trap 'stty size; exit 3' WINCH; stty size; while :; do read -t 1 line; done"
    result = run_when_ready(guest, ["sh", "-c", script], [(b"24 80", (50, 132))])
    assert result.stdout.split() == [b"24", b"80", b"50", b"132"]
    assert result.exit_code == 3


def test_the_end_of_the_session_hangs_up_the_jobs_in_its_foreground(guest):
    script = (
        "trap 'echo hup' HUP; (trap 'echo child; exit' HUP; while :; do sleep 1; done) & sleep 1; kill -HUP 0; wait"
    )
    result = run_on_terminal(guest, ["sh", "-c", script])
    assert b"child" in result.stdout


def test_job_control_in_a_script_on_a_terminal(guest):
    script = "set -m; sleep 100 & kill -STOP %1; sleep 1; jobs; bg; jobs; kill %1; wait %1; echo $?"
    lines = run_on_terminal(guest, ["sh", "-c", script]).stdout.splitlines()
    assert b"Stopped" in lines[0]
    assert b"Running" in lines[2]
    assert lines[-1] == b"143"


def test_jobs_stop_and_go_on_without_a_terminal(guest):
    """busybox's `set -m` wants a terminal; process groups, SIGSTOP, SIGCONT and waiting do not."""
    state = "sleep 1; cut -d' ' -f3 /proc/$!/stat"
    script = f"sleep 100 & kill -STOP %1; {state}; kill -CONT %1; {state}; jobs | cut -c1-13; kill %1; wait %1; echo $?"
    isolated = run(guest, ["sh", "-c", script])
    plain = run(guest, ["sh", "-c", script], RunOptions(isolate="none"))
    assert isolated.stdout == plain.stdout == b"T\nS\n[1]+  Running\n143\n"
    assert isolated.stderr == plain.stderr
    assert isolated.record.totals["killed"] == 0
    refused = run(guest, ["sh", "-c", "set -m; echo on"])
    assert b"can't access tty" in refused.stderr


def test_input_that_the_tenant_does_not_take_does_not_stop_its_clock(guest):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb", buffering=0) as stdin, os.fdopen(writer, "wb", buffering=0) as keyboard:
        options = RunOptions(stdin=stdin, on_output=lambda _stream, _data: keyboard.write(b"y\n" * 30000))
        for _ in range(2):
            keyboard.write(b"y\n" * 30000)
        started = time.monotonic()
        result = run(guest, ["sh", "-c", "echo; echo; sleep 300"], options)
    assert result.exit_code == 0
    assert time.monotonic() - started < 60


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ValueError, match="rows"):
        Terminal(rows=70000)
