"""`make demo`: programs on a real kernel with every call isolated, then an exploit with and without isolation."""

import sys

import thinbox

SCRIPT = "echo hello | wc -c; ls -l / | head -4; grep ^Cpus_allowed: /proc/self/status; uname -a"
TARGET, OFFSET = "hugetlb_reserve_pages", 0xC5
"""Where a corrupted pointer leads: not the start of an instruction, as in the proposal's own demonstration."""
SHELL_CALLS = 1
"""busybox's shell calls getuid once before it forks."""


def show(text: str) -> None:
    print(text, flush=True)


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def hijacked(guest, command, skip=0, **options):
    """Run `command`; once getuid's handler has begun `skip` times, the CPU goes to the wrong place instead."""
    seen = 0
    with guest.session(command, **options) as s:
        target = s.symbols[TARGET] + OFFSET

        def hijack() -> None:
            nonlocal seen
            seen += s.is_tenants
            if s.is_tenants and seen == skip + 1:
                s.jump(target)

        s.on("__x64_sys_getuid", hijack)
    return s.result


def main() -> int:
    guest = thinbox.boot(progress=say)
    origin = "from the cache" if guest.from_cache else "just booted"
    show(f"Linux {guest.release} waits in this process, {origin}.")

    show(f"\n1. A shell pipeline, every system call isolated:\n   $ thinbox run -- sh -c '{SCRIPT}'")
    isolated = guest.run(["sh", "-c", SCRIPT])
    show(isolated.text + isolated.stderr.decode())
    show(isolated.summary())

    plain = guest.run(["sh", "-c", SCRIPT], isolate="none")
    same = (plain.stdout, plain.stderr, plain.exit_code) == (isolated.stdout, isolated.stderr, isolated.exit_code)
    show(f"\n2. The same, not isolated: output and status are {'the same, byte for byte' if same else 'DIFFERENT'}.")

    show(f"\n3. An exploit: the handler of getuid jumps to {TARGET}+{OFFSET:#x}, un-isolated:")
    plain_hijack = hijacked(guest, ["id"], isolate="none")
    show(f"   exit status {plain_hijack.exit_code}; {what_happened(plain_hijack)}")

    show("\n4. The same exploit, isolated by policy sci, as it was proposed (thinbox run --policy sci):")
    caught = hijacked(guest, ["id"], policy="sci")
    show(f"   exit status {caught.exit_code}")
    for violation in caught.kills:
        show(f"   {violation.sentence()}")
    show("\n5. The rest of the guest lives on: a shell whose child is killed goes on to its next command.")
    script = "echo before; id -u; echo after, with status $?"
    survivor = hijacked(guest, ["sh", "-c", script], SHELL_CALLS, policy="sci")
    show("   " + survivor.text.strip().replace("\n", "\n   "))
    return 0 if same and caught.exit_code == 137 and caught.kills else 1


def what_happened(result: thinbox.Result) -> str:
    words = ("RIP:", "BUG:", "Oops", "fault")
    lines = [line for line in result.console.splitlines() if any(word in line for word in words)]
    if lines:
        return "the kernel ran on from there until it oopsed:\n   " + "\n   ".join(line.strip() for line in lines[:3])
    return "the kernel ran on from there, and nobody noticed"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except thinbox.ThinboxError as error:
        print(f"thinbox: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
