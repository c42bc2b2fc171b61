"""`make demo`: programs on a real kernel with every call isolated, then an exploit with and without isolation."""

import sys

from thinbox.attacks.hijack import HijackedCall
from thinbox.boot.ready import prepare
from thinbox.cli.progress import ProgressLine
from thinbox.errors import ThinboxError
from thinbox.report.summary import render_summary
from thinbox.session.session import RunOptions, run

SHELL_CALLS = 1
"""busybox's shell calls getuid once before it forks."""
SCRIPT = "echo hello | wc -c; ls -l / | head -4; grep ^Cpus_allowed: /proc/self/status; uname -a"


def show(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    progress = ProgressLine(quiet=False)
    guest = prepare(progress=progress.say)
    progress.clear()
    origin = "from the cache" if guest.from_cache else "just booted"
    show(f"Linux {guest.facts.release} waits in this process, {origin}.")

    show(f"\n1. A shell pipeline, every system call isolated:\n   $ thinbox run -- sh -c '{SCRIPT}'")
    isolated = run(guest, ["sh", "-c", SCRIPT])
    show(isolated.stdout.decode() + isolated.stderr.decode())
    show(render_summary(isolated.record))

    plain = run(guest, ["sh", "-c", SCRIPT], RunOptions(isolate="none"))
    same = (plain.stdout, plain.stderr, plain.exit_code) == (isolated.stdout, isolated.stderr, isolated.exit_code)
    show(f"\n2. The same, not isolated: output and status are {'the same, byte for byte' if same else 'DIFFERENT'}.")

    bug = HijackedCall()
    show(f"\n3. An exploit: the handler of getuid jumps to {bug.target}+{bug.offset:#x}, un-isolated:")
    plain_hijack = run(guest, ["id"], RunOptions(isolate="none", on_machine=bug.install))
    show(f"   exit status {plain_hijack.exit_code}; {what_happened(plain_hijack)}")

    bug = HijackedCall()
    show("\n4. The same exploit, isolated:")
    caught = run(guest, ["id"], RunOptions(on_machine=bug.install))
    show(f"   exit status {caught.exit_code}")
    for violation in caught.record.kills:
        show(f"   {violation.sentence()}")
    show("\n5. The rest of the guest lives on: a shell whose child is killed goes on to its next command.")
    script = "echo before; id -u; echo after, with status $?"
    survivor = run(guest, ["sh", "-c", script], RunOptions(on_machine=HijackedCall(skip=SHELL_CALLS).install))
    show("   " + survivor.stdout.decode().strip().replace("\n", "\n   "))
    return 0 if same and caught.exit_code == 137 and caught.record.kills else 1


def what_happened(result) -> str:
    words = ("RIP:", "BUG:", "Oops", "fault")
    lines = [line for line in result.console.splitlines() if any(word in line for word in words)]
    if lines:
        return "the kernel ran on from there until it oopsed:\n   " + "\n   ".join(line.strip() for line in lines[:3])
    return "the kernel ran on from there, and nobody noticed"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThinboxError as error:
        print(f"thinbox: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
