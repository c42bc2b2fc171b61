"""A Python program at work: files, processes, threads, sockets, hashing. Prints the same bytes every run.

Run as `python3 program.py`; needs a writable temporary directory, no network device (it uses socket pairs,
and loopback only if that is up) and no package besides the standard library. The last line is
`program: N checks ok` and the exit status 0.
"""

import hashlib
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

_checks = 0


def check(what, expected, actual):
    global _checks
    _checks += 1
    if expected != actual:
        print(f"FAILED {_checks} {what}: expected {expected!r}, got {actual!r}", flush=True)
        sys.exit(1)
    print(f"ok {_checks} {what}", flush=True)


def compute():
    numbers = random.Random(1).sample(range(100_000), 5000)
    check("sorting", sorted(numbers), sorted(numbers, key=lambda n: (n >> 8, n & 255)))
    value = {"name": "thinbox", "list": list(range(50)), "nested": {"pi": 3.25, "none": None, "text": "é"}}
    check("json round trip", value, json.loads(json.dumps(value, sort_keys=True)))
    check("sha256", "e3aee1725476321f", hashlib.sha256(b"a" * 8000).hexdigest()[:16])
    data = bytes(range(256)) * 400
    check("zlib round trip", data, zlib.decompress(zlib.compress(data)))
    check("crc32", 0xCBF43926, zlib.crc32(b"123456789"))
    check("struct", (1, 2, 3), struct.unpack("<BHI", struct.pack("<BHI", 1, 2, 3)))


def files(folder):
    path = os.path.join(folder, "data.bin")
    with open(path, "wb") as file:
        file.writelines(bytes([block]) * 1000 for block in range(100))
        file.flush()
        os.fsync(file.fileno())
    check("size", 100_000, os.stat(path).st_size)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        check("mapped", bytes([42]), view[42_500:42_501])
        view[0:4] = b"MARK"
        view.flush()
    with open(path, "rb") as file:
        check("written through the mapping", b"MARK", file.read(4))
        check("pread", bytes([99]), os.pread(file.fileno(), 1, 99_999))
    os.truncate(path, 10)
    os.rename(path, path + ".renamed")
    os.link(path + ".renamed", path)
    os.symlink("data.bin", os.path.join(folder, "link"))
    os.chmod(path, 0o640)
    status = os.stat(os.path.join(folder, "link"))
    check("mode, links, size", (0o640, 2, 10), (status.st_mode & 0o777, status.st_nlink, status.st_size))
    for name in "abc":
        os.makedirs(os.path.join(folder, "tree", name, "deep"))
    walked = sorted(os.path.relpath(top, folder) for top, _, _ in os.walk(os.path.join(folder, "tree")))
    check("walk", ["tree", "tree/a", "tree/a/deep", "tree/b", "tree/b/deep", "tree/c", "tree/c/deep"], walked)
    try:
        os.close(os.open(os.path.join(folder, "missing"), os.O_RDONLY))
    except FileNotFoundError as error:
        check("errno", 2, error.errno)


def processes():
    done = subprocess.run(
        [sys.executable, "-S", "-E", __file__, "child", "7"], input=b"from parent", stdout=subprocess.PIPE, check=False
    )
    check("subprocess", (7, b"FROM PARENT"), (done.returncode, done.stdout))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, b"x" * 3000)
        os._exit(5)
    os.close(writer)
    received = b""
    while chunk := os.read(reader, 1000):
        received += chunk
    os.close(reader)
    check("fork and pipe", (3000, 5), (len(received), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    sleeper = os.fork()
    if sleeper == 0:
        signal.pause()
        os._exit(0)
    os.kill(sleeper, signal.SIGTERM)
    check("killed by", -signal.SIGTERM, os.waitstatus_to_exitcode(os.waitpid(sleeper, 0)[1]))


def signals():
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    check("signal handler", [signal.SIGUSR1], seen)
    signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    while len(seen) < 2:
        time.sleep(0.01)
    check("interval timer", [signal.SIGUSR1, signal.SIGALRM], seen)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)
    check("blocked and fetched", signal.SIGUSR2, signal.sigwait([signal.SIGUSR2]))


def threads():
    lock = threading.Lock()
    results = []
    barrier = threading.Barrier(8)

    def work(number):
        digest = b""
        for round_number in range(50):
            digest = hashlib.sha256(digest + bytes([number, round_number])).digest()
        barrier.wait()
        with lock:
            results.append((number, digest[:2].hex()))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    check("eight threads", list(range(8)), sorted(number for number, _ in results))
    event = threading.Event()
    threading.Timer(0.02, event.set).start()
    check("timer thread", True, event.wait(30))
    check("timed wait runs out", False, threading.Event().wait(0.01))


def sockets(folder):
    left, right = socket.socketpair()
    payload = bytes(range(256)) * 1000

    def answer():
        got = b""
        while len(got) < len(payload):
            got += right.recv(65_536)
        right.sendall(hashlib.sha256(got).digest())
        right.close()

    helper = threading.Thread(target=answer)
    helper.start()
    left.sendall(payload)
    reply = b""
    while chunk := left.recv(100):
        reply += chunk
    helper.join()
    left.close()
    check("socket pair", hashlib.sha256(payload).digest(), reply)

    address = os.path.join(folder, "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen(1)
        client.connect(address)
        connection, _ = server.accept()
        with connection, open(__file__, "rb") as file:
            socket.send_fds(connection, [b"descriptor"], [file.fileno()])
            message, descriptors, _, _ = socket.recv_fds(client, 100, 1)
            first = os.pread(descriptors[0], 3, 0)
            os.close(descriptors[0])
    check("descriptor passed", (b"descriptor", b'"""'), (message, first))

    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, select.epoll() as poll:
        poll.register(right, select.EPOLLIN)
        check("nothing to read", [], poll.poll(0.01))
        left.send(b"datagram")
        check("epoll", [(right.fileno(), select.EPOLLIN)], poll.poll(30))
        check("datagram", b"datagram", right.recv(100))


def loopback():
    """Echo over TCP; a guest that never brought `lo` up answers ENETUNREACH, which is as good."""
    result = "echoed"
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=30) as client,
        ):
            connection, _ = server.accept()
            with connection:
                client.sendall(b"ping")
                result = "echoed" if connection.recv(4) == b"ping" else "wrong"
    except OSError as error:
        result = "echoed" if error.errno in (99, 101) else f"errno {error.errno}"
    check("loopback, or none", "echoed", result)


def child(status):
    sys.stdout.write(sys.stdin.read().upper())
    sys.exit(int(status))


def main():
    compute()
    with tempfile.TemporaryDirectory() as folder:
        files(folder)
        sockets(folder)
    check("cleaned up", False, os.path.exists(folder))
    processes()
    signals()
    threads()
    loopback()
    print(f"program: {_checks} checks ok")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2])
    main()
