"""Strangers at the port where hosts meet: `python -m tests.faults.strangers`.

While two hosts join, other programs send random bytes, hold idle connections, and present another token. The hosts
must join, within seconds after the second one has started, and write one line about the strangers.
"""

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_HOST = """
import sys
from train.multihost.hosts import Hosts
from train.multihost import joining
joining._initialize_jax = lambda _: None
index, port = int(sys.argv[1]), sys.argv[2]
with joining._join_given(Hosts(coordinator=f"127.0.0.1:{port}", count=2, index=index, timeout=90)) as group:
    print(group.exchange(index), flush=True)
"""
_TOKEN = "FLAXBERT_HOSTS_TOKEN"


def start_host(index: int, port: int, token: str) -> subprocess.Popen[str]:
    """Start a host of a run of two that only joins and exchanges a value."""
    words = [sys.executable, "-c", _HOST, str(index), str(port)]
    environment, pipe = {**os.environ, _TOKEN: token}, subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)


def join_among_strangers(*, payloads: int, idle: int, seed: int = 0) -> tuple[float, str, str]:
    """Return the seconds that the second host took to join, and the stderr of both hosts.

    Raises:
        AssertionError: the hosts did not join.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    hosts = [start_host(0, port, "the token of this run")]
    other = None
    try:
        with contextlib.ExitStack() as idle_connections:
            wait_for_port(port)
            for _ in range(idle):
                idle_connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            other = start_host(1, port, "the token of another run")
            for payload in random_payloads(payloads, seed):
                send(port, payload)
            noise = threading.Thread(
                target=lambda: [send(port, p) for p in random_payloads(200, seed + 1)], daemon=True
            )
            noise.start()
            start = time.monotonic()
            hosts.append(start_host(1, port, "the token of this run"))
            found = [host.communicate(timeout=60) for host in hosts]
            seconds = time.monotonic() - start
    finally:
        for process in [*hosts, *([other] if other else [])]:
            process.kill()
            process.communicate()
    noise.join()
    assert [host.returncode for host in hosts] == [0, 0], found
    assert [out for out, _ in found] == ["[0, 1]\n"] * 2, found
    return seconds, found[0][1], found[1][1]


def wait_for_port(port: int) -> None:
    """Wait until something listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)


def random_payloads(count: int, seed: int) -> Iterator[bytes]:
    """Return random bytes, lines of JSON, greetings without and with a wrong proof, and long lines."""
    chance = random.Random(seed)
    for _ in range(count):
        size = chance.choice([1, 10, 100, 5000, 100_000])
        greeting = b'{"flaxbert": 2, "index": 1, "count": 2, "name": "x", "challenge": "y", "proof": "%d"}\n'
        yield chance.choice(
            [
                chance.randbytes(size),
                chance.randbytes(size) + b"\n",
                b"[" * size + b"\n",
                b"9" * size + b"\n",
                b'{"names": ["x"], "leaving": true}\n',
                b'{"end": "no", "code": 0}\n' * 3,
                greeting % chance.getrandbits(256),
                b"GET / HTTP/1.1\r\n\r\n",
            ]
        )


def send(port: int, payload: bytes) -> None:
    """Send bytes to the port, and close the connection; it may be closed from the other side, or not be taken."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(payload)


def main(arguments: list[str]) -> int:
    """Let hosts join among strangers, and print the time that it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payloads", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=100)
    settings = parser.parse_args(arguments)
    alone = join_among_strangers(payloads=0, idle=0)[0]
    seconds, first, second = join_among_strangers(payloads=settings.payloads, idle=settings.idle)
    print(f"joined {seconds:.1f} s after the second host started ({alone:.1f} s without strangers); stderr of host 0:")
    print(first, end="")
    return 0 if first.count("\n") == 1 and not second and seconds < alone + 10 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
