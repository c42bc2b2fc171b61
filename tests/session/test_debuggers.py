"""Debuggers in a tenant: data breakpoints stop the program at each access, as on hardware."""

import shutil
import subprocess

import pytest
from thinbox.session.session import RunOptions, run

SOURCE = r"""
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
volatile long words[4], sum;
static void child(int pipe_end) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    for (int i = 0; i < 50; i++) words[i & 3] = i;
    for (int i = 0; i < 3; i++) sum += words[2];
    ((volatile char *)words)[19] = 1;
    if (read(pipe_end, (void *)words, 32) != 32) _exit(1);  /* the kernel stores there */
    words[1] = 7;
    _exit(0);
}
static long debug(pid_t pid, int number, unsigned long value) {
    return ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]) + 8 * number, value);
}
int main(int argc, char **argv) {
    int ends[2], status, hits = 0;
    char data[32] = {0};
    if (pipe(ends) || write(ends[1], data, 32) != 32) return 2;
    pid_t pid = fork();
    if (!pid) child(ends[0]);
    waitpid(pid, &status, 0);
    unsigned long how = atoi(argv[1]) | atoi(argv[2]) << 2;
    if (debug(pid, 2, (unsigned long)&words[2] + atoi(argv[3])) || debug(pid, 7, 1UL << 4 | how << 24)) return 3;
    long dr6 = 0, last = -1;
    for (;;) {
        ptrace(PTRACE_CONT, pid, 0, 0);
        waitpid(pid, &status, 0);
        if (WIFEXITED(status)) break;
        if (WSTOPSIG(status) != SIGTRAP) return 4;
        hits++;
        dr6 |= ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg[6]), 0);
        debug(pid, 6, 0);
        last = ptrace(PTRACE_PEEKDATA, pid, &words[2], 0);
    }
    printf("%d hits, dr6 %lx, last %ld, exit %d\n", hits, dr6 & 0xf, last, WEXITSTATUS(status));
    return 0;
}
"""
STORES, ACCESSES = "1", "3"
EIGHT_BYTES, ONE_BYTE = "2", "0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("watched")
    (folder / "watched.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-static", "-o", folder / "watched", folder / "watched.c"], check=True)
    return folder


@pytest.mark.parametrize(
    "words",
    [(STORES, EIGHT_BYTES, "0"), (ACCESSES, EIGHT_BYTES, "0"), (STORES, ONE_BYTE, "3"), (STORES, ONE_BYTE, "4")],
)
@pytest.mark.parametrize("isolate", ["none", "all"])
def test_watched_data_stops_the_program_as_on_the_hosts_own_cpu(guest, root, words, isolate):
    """12 stores of the loop, one of a byte, and the kernel's own copy, which the hardware reports when it was made."""
    wanted = subprocess.run([root / "watched", *words], capture_output=True, check=False)
    result = run(guest, ["/watched", *words], RunOptions(rootfs=root, isolate=isolate))
    assert not result.record.kills and result.exit_code == 0
    if wanted.returncode == 0:
        assert result.stdout == wanted.stdout
    hits = int(result.stdout.split()[0])
    assert hits >= (13 if words[1] == EIGHT_BYTES else 12) and b"dr6 4" in result.stdout
