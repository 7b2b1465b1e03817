"""Hosts that connect, exchange values, and end together: real processes, which compute nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults import strangers
from train.multihost import joining, run_token, tcp_group
from train.multihost.hosts import SINGLE_HOST

ROOT = Path(__file__).parents[3]
HOST = """
import socket, sys, time
from train.multihost import admission, tcp_group
from train.multihost.progress import WORK
index, count, port, seconds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
TOKEN, HOW = "0123456789abcdef", {"seconds": seconds, "hang_timeout": 2.0 if "hangs" in sys.argv else 60.0}
try:
    if index:
        host_group = admission.connect_to_first_host([("127.0.0.1", port)], index, count, token=lambda: TOKEN, **HOW)
    else:
        host_group = admission.accept_hosts(socket.create_server(("127.0.0.1", port)), count, token=TOKEN, **HOW)
except ValueError as error:
    sys.exit(f"error: {error}")
with host_group:
    print("joined", flush=True)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(index, count, port, body="    pass", seconds=30, *words):
    words = [sys.executable, "-c", HOST + body, str(index), str(count), str(port), str(seconds), *words]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes):
    """Wait for the processes; return (exit code, stdout, stderr) of each."""
    found = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    return [(code, out, err) for out, err, code in found]


def all_joined(processes):
    for process in processes:
        assert process.stdout.readline() == "joined\n"


def test_one_host_agrees_with_itself():
    with SINGLE_HOST as host_group:
        assert host_group.exchange(3) == [3] and host_group.share(lambda: "x") == "x" and host_group.wait() is None
        host_group.check_same("things", {"a": 1})


def test_hosts_exchange_values():
    body = """
    made = lambda: f"by {host_group.index}"
    values = host_group.exchange({"from": host_group.index})
    print(values, host_group.share(made), len(set(host_group.names)), host_group.index, flush=True)
    host_group.wait()
    host_group.check_same("things", {"a": 1, "b": [2.5, None]})
"""
    port = free_port()
    found = ended([start(index, 3, port, body) for index in (2, 0, 1)])
    said = "[{'from': 0}, {'from': 1}, {'from': 2}] by 0 1"
    assert found == [(0, f"joined\n{said} {index}\n", "") for index in (2, 0, 1)]


def test_what_differs_is_named_on_all_hosts():
    body = """
    try:
        more = {"more": 0} if host_group.index == 1 else {}
        host_group.check_same("settings", {"rate": 1 + (host_group.index == 2), "steps": 5} | more)
    except ValueError as error:
        print(error)
"""
    port = free_port()
    name = socket.gethostname()
    expected = (
        "joined\nthe hosts have different settings; give all hosts the same:\n"
        f"  more: 0 on host 1 ({name}), None on host 0\n  rate: 2 on host 2 ({name}), 1 on host 0\n"
    )
    assert [out for _, out, _ in ended([start(index, 3, port, body) for index in range(3)])] == [expected] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_host_is_named_by_the_others(victim):
    port = free_port()
    processes = [start(index, 3, port, "    time.sleep(60)") for index in range(3)]
    all_joined(processes)
    processes[victim].kill()
    lost = f"host {victim} ({socket.gethostname()}) was lost: its connection closed; start the run again"
    for index, (code, _, errors) in enumerate(ended(processes)):
        if index != victim:
            assert code == tcp_group.HOST_LOST and lost in errors, errors


def test_a_host_that_waits_for_a_lost_one_ends():
    port = free_port()
    processes = [start(0, 2, port, "    host_group.exchange(1)"), start(1, 2, port, "    time.sleep(60)")]
    all_joined(processes)
    processes[1].kill()
    assert [code for code, *_ in ended(processes)] == [tcp_group.HOST_LOST, -signal.SIGKILL]


def test_a_frozen_host_counts_as_lost():
    port = free_port()
    body = "    tcp_group.SILENCE = 3.0\n    host_group.wait()\n    time.sleep(60)"
    processes = [start(index, 3, port, body) for index in range(3)]
    all_joined(processes)
    time.sleep(4)  # the first message after that was waited for as long as before
    processes[2].send_signal(signal.SIGSTOP)
    try:
        for code, _, errors in ended(processes[:2]):
            assert code == tcp_group.PREEMPTED and "host 2" in errors and "was lost: silent for 3 s" in errors
    finally:
        processes[2].kill()
        ended(processes[2:])


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_host_that_is_stuck_is_named(stuck):
    """One host does not come to the exchange that the others wait in; its threads live on."""
    port = free_port()
    bodies = {stuck: "    host_group.exchange(1)\n    time.sleep(60)"}
    waiting = "    host_group.exchange(1)\n    host_group.exchange(2)"
    found = ended([start(index, 3, port, bodies.get(index, waiting), 30, "hangs") for index in range(3)])
    said = f"stopped: host {stuck} ({socket.gethostname()}) hangs: no progress for 2 s (--hosts.hang-timeout); start"
    for code, _, errors in found:
        assert code == tcp_group.PREEMPTED and said in errors, errors


@pytest.mark.slow
def test_progress_keeps_a_run_alive():
    port = free_port()
    body = "    for _ in range(16):\n        WORK.begun += 1\n        time.sleep(0.5)"
    assert ended([start(index, 2, port, body, 30, "hangs") for index in range(2)]) == [(0, "joined\n", "")] * 2


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("FileNotFoundError('dev.tsv: no such file')", 2, "failed: dev.tsv: no such file"),
        ("FloatingPointError('step 3: loss nan')", 1, "failed: step 3: loss nan"),
        ("RuntimeError('disk full')", 1, "failed: RuntimeError: disk full"),
        ("KeyboardInterrupt", 1, "failed: KeyboardInterrupt: interrupted"),
    ],
)
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_host_ends_all_with_its_message(failing, raised, code, said):
    port = free_port()
    bodies = {failing: f"    raise {raised}"}
    found = ended([start(index, 3, port, bodies.get(index, "    host_group.wait()")) for index in range(3)])
    for index, (found_code, _, errors) in enumerate(found):
        if index != failing:
            assert found_code == code and f"stopped: host {failing} ({socket.gethostname()}) {said}\n" in errors


def test_a_host_that_has_finished_waits_for_the_others_and_is_not_lost():
    port = free_port()
    processes = [start(0, 3, port, "    pass")] + [start(i, 3, port, "    time.sleep(3)") for i in (1, 2)]
    all_joined(processes)
    time.sleep(1)
    assert processes[0].poll() is None
    assert ended(processes) == [(0, "", "")] * 3


def test_missing_hosts_are_named():
    port = free_port()
    first, second = ended([start(index, 4, port, seconds=2 + index) for index in (0, 2)])
    missing = "2 of 4 hosts came within 2 s; missing: 1, 3. Were they started with this coordinator?\n"
    assert first == (1, "", f"error: {missing}")
    assert second == (1, "", f"error: host 0 at 127.0.0.1:{port}: {missing}")


def test_a_missing_coordinator_is_named():
    port = free_port()
    started = time.monotonic()
    ((code, _, errors),) = ended([start(1, 2, port, seconds=1)])
    assert code == 1 and f"error: host 0 was not reached at 127.0.0.1:{port} within 1 s" in errors
    assert time.monotonic() - started < 30


def test_an_index_given_twice_is_refused():
    port = free_port()
    found = ended([start(index, 3, port) for index in (0, 1, 1)])
    name = socket.gethostname()
    for code, _, errors in found:
        assert code == 1 and f"--hosts.index 1 was given to {name} and to {name}; each host needs its own\n" in errors


def test_another_number_of_hosts_is_refused():
    port = free_port()
    name = socket.gethostname()
    for code, _, errors in ended([start(0, 3, port), start(1, 2, port)]):
        assert code == 1 and f"{name} was started with --hosts.count 2, {name} with 3\n" in errors


def test_a_host_may_reconnect_before_all_are_there():
    port = free_port()
    first = [start(0, 3, port), start(1, 3, port)]
    time.sleep(1.5)
    first[1].kill()
    ended(first[1:])
    found = ended([first[0], start(1, 3, port), start(2, 3, port)])
    assert found == [(0, "joined\n", "")] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_killed_while_it_joins_is_named(monkeypatch, victim):
    port = free_port()
    early = "from train.multihost import admission\nadmission._RETURN_TIMEOUT = 1.0\n"
    monkeypatch.setattr(sys.modules[__name__], "HOST", early + HOST)
    processes = [start(0, 3, port, seconds=60), start(1, 3, port, seconds=60)]  # the third one does not come
    wait_until_connected(processes[1])
    time.sleep(0.5)
    processes[victim].kill()
    code, _, errors = ended(processes)[1 - victim]
    who = f"host 1 ({socket.gethostname()})" if victim else f"host 0 (127.0.0.1:{port})"
    assert (
        code == tcp_group.HOST_LOST
        and errors == f"stopped: {who} was lost while the hosts joined; start the run again\n"
    )


def wait_until_connected(process):
    """Wait until the process has a connection."""
    folder = Path(f"/proc/{process.pid}/fd")
    while not any("socket" in os.readlink(link) for link in list(folder.iterdir()) if link.is_symlink()):
        time.sleep(0.02)


def test_the_token_of_processes_on_one_machine_is_private_and_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_token.made_token(1) as token:
        (folder,) = tmp_path.iterdir()
        (file,) = folder.iterdir()
        assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
        assert run_token.find_made_token(1) == token and run_token.find_made_token(2) is None
        folder.chmod(0o755)
        assert run_token.find_made_token(1) is None
        with pytest.raises(ValueError, match="not a folder of this user alone"), run_token.made_token(2):
            pass
        folder.chmod(0o700)
    assert run_token.find_made_token(1) is None and not list(folder.iterdir())


def test_the_token_that_is_given(monkeypatch, tmp_path):
    monkeypatch.delenv(run_token.TOKEN_VARIABLE, raising=False)
    assert run_token.given_token(None) is None
    monkeypatch.setenv(run_token.TOKEN_VARIABLE, "a" * 16 + "\n")
    assert run_token.given_token(None) == "a" * 16
    (tmp_path / "token").write_text("b" * 20 + "\n")
    assert run_token.given_token(tmp_path / "token") == "b" * 20
    (tmp_path / "token").write_text("short")
    with pytest.raises(ValueError, match=r"hosts.token_file .*: the token has 5 characters; allowed: 16 or more"):
        run_token.given_token(tmp_path / "token")
    with pytest.raises(ValueError, match="cannot be read"):
        run_token.given_token(tmp_path / "none")


def test_strangers_neither_end_nor_slow_the_joining():
    seconds, first, second = strangers.join_among_strangers(payloads=50, idle=80)
    assert first == "note: turned away connections without the run's token, first from 127.0.0.1\n" and not second
    assert seconds < 15


def test_host_0_listens_at_the_address_of_the_coordinator_only():
    with joining._listener("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", listener.getsockname()[1]))
    with pytest.raises(ValueError, match=r"cannot listen at 192\.0\.2\.1:1 here .*; give an address of host 0"):
        joining._listener("192.0.2.1", 1)


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"flaxbert": 1, "index": "x"}\n', b"[" * 10**5]
)
def test_other_programs_are_not_admitted(said):
    port = free_port()
    processes = [start(0, 2, port)]
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said + b"\n" * (len(said) > 1000))
            break
        time.sleep(0.05)
    processes.append(start(1, 2, port))
    assert [code for code, *_ in ended(processes)] == [0, 0]


def test_malformed_messages_are_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        connection = tcp_group.Connection(server.accept()[0])
    for line in (b"nonsense\n", b"[1]\n", b"9" * 5000 + b"\n"):
        theirs.sendall(line)
        with pytest.raises(ConnectionError, match="not a message"):
            connection.receive(5)
    theirs.sendall(json.dumps({"value": 1}).encode()[:5])
    theirs.close()
    with pytest.raises(ConnectionError, match="connection closed"):
        connection.receive(5)
    connection.close()
