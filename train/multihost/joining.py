"""Joining the hosts of a run into a group.

Only the functions that need jax import it: the processes of `tcp_group.py` by themselves start without.
"""

import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from train.multihost.hosts import SINGLE_HOST, HostGroup, Hosts

# Variables in which launchers say how many processes they started: the launcher, and whether jax knows its cluster.
_PROCESS_COUNTS = {
    "SLURM_STEP_NUM_TASKS": ("srun", True),
    "OMPI_COMM_WORLD_SIZE": ("mpirun", True),
    "PMI_SIZE": ("mpiexec (MPICH, Intel MPI or PMI)", False),
    "MV2_COMM_WORLD_SIZE": ("mpirun_rsh (MVAPICH)", False),
    "JSM_NAMESPACE_SIZE": ("jsrun", False),
    "FLUX_JOB_SIZE": ("flux", False),
    "WORLD_SIZE": ("torchrun or accelerate", False),
    "HOROVOD_SIZE": ("horovodrun", False),
    "JAX_NUM_PROCESSES": ("a launcher of jax", False),
    "SKYPILOT_NUM_NODES": ("SkyPilot", False),
}
_SHARED_TIMEOUT = 10.0  # seconds until a file of one host is visible to all; NFS takes up to three


def join_hosts(hosts: Hosts) -> HostGroup:
    """Wait until all hosts of the run have joined, and return their group.

    Call it before any computation: afterwards jax counts the devices of all hosts.

    Raises:
        ValueError: a host is missing (named), or this process was launched together with others without `hosts`.
    """
    if not hosts.detect and hosts.count is None:
        _check_not_launched_with_others()
    if not hosts.detect and hosts.count in (None, 1):
        return SINGLE_HOST
    return _join_detected(hosts) if hosts.detect else _join_given(hosts)


def check_shared_folder(folder: Path, host_group: HostGroup) -> None:
    """Check that all hosts see the folder that host 0 has made.

    Raises:
        ValueError: names the hosts that do not see it.
    """
    if len(host_group.names) == 1:
        return
    mark = folder / host_group.share(lambda: f".shared-{secrets.token_hex(8)}")
    try:
        if host_group.index == 0:
            mark.touch()
        host_group.wait()
        deadline = time.monotonic() + _SHARED_TIMEOUT
        while not (seen := mark.exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
            if folder.is_dir():
                os.listdir(folder)  # makes network file systems refresh their cache
        unaware = [host_group.name(index) for index, sees in enumerate(host_group.exchange(seen)) if not sees]
    finally:
        if host_group.index == 0:
            mark.unlink(missing_ok=True)
    if unaware:
        raise ValueError(
            f"run.folder {folder} of host 0 is not seen by {', '.join(unaware)}; give a folder that all hosts share"
        )


def _check_not_launched_with_others() -> None:
    """Refuse to be one of several processes that would all train the same run in the same folder."""
    launched = {name: os.environ.get(name, "") for name in _PROCESS_COUNTS}
    launched["TPU_WORKER_HOSTNAMES"] = str(len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")))
    for name, tasks in launched.items():
        if tasks.isdecimal() and int(tasks) > 1:
            launcher, detected = _PROCESS_COUNTS.get(name, ("GKE", True))
            join = "--hosts.detect" if detected else "--hosts.coordinator, --hosts.count and --hosts.index"
            raise ValueError(
                f"{launcher} has started {tasks} of these processes ({name}): give {join} to train with all of them, "
                "or --hosts.count 1 if each is a run of its own"
            )


def _join_given(hosts: Hosts) -> HostGroup:
    """Connect our own group first: jax would end the process with a stack trace if a host is missing."""
    from train.multihost.admission import accept_hosts, connect_to_first_host
    from train.multihost.run_token import find_made_token, given_token, made_token

    assert hosts.count is not None and hosts.index is not None
    given, port = given_token(hosts.token_file), hosts.address[1]
    timeouts = {"seconds": float(hosts.timeout), "hang_timeout": float(hosts.hang_timeout)}
    if hosts.index == 0:
        listener = _listener(*hosts.address)
        with made_token(port) if given is None else contextlib.nullcontext(given) as token:
            host_group = accept_hosts(listener, hosts.count, token=token, **timeouts)
    else:
        find = (lambda: find_made_token(port)) if given is None else lambda: given
        host_group = connect_to_first_host([hosts.address], hosts.index, hosts.count, token=find, **timeouts)
    _initialize_jax(hosts)
    return host_group


def _join_detected(hosts: Hosts) -> HostGroup:
    """Let jax find the hosts in the environment and connect them; then connect our own group."""
    import jax

    from train.multihost.admission import accept_hosts, connect_to_first_host

    def give_up() -> None:
        os.write(2, f"error: not all hosts came within {hosts.timeout} s (--hosts.detect)\n".encode())
        os._exit(2)

    timer = threading.Timer(hosts.timeout, give_up)  # jax itself would end with a stack trace
    timer.daemon = True
    timer.start()
    try:
        _initialize_jax(hosts)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"--hosts.detect: jax knows no cluster here ({error}); "
            "give --hosts.coordinator, --hosts.count and --hosts.index"
        ) from None
    finally:
        timer.cancel()
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return SINGLE_HOST
    listener = _listener(_own_address(), 0) if index == 0 else None
    # The token goes by jax's own connections, which have none.
    made = "" if listener is None else "|".join([*map(str, listener.getsockname()[:2]), secrets.token_hex(16)])
    address, port, token = _broadcast_text(made).split("|")
    timeouts = {"seconds": float(hosts.timeout), "hang_timeout": float(hosts.hang_timeout)}
    if listener is not None:
        return accept_hosts(listener, count, token=token, **timeouts)
    return connect_to_first_host([(address, int(port))], index, count, token=lambda: token, **timeouts)


def _initialize_jax(hosts: Hosts) -> None:
    import jax

    from train.multihost.tcp_group import SILENCE

    on_terminate = signal.getsignal(signal.SIGTERM)
    timeout = round(SILENCE) + 10  # longer than ours, because our message names the lost host
    jax.distributed.initialize(
        initialization_timeout=hosts.timeout + 30,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
        coordinator_address=hosts.coordinator,
        coordinator_bind_address=hosts.coordinator if hosts.index == 0 else None,
        num_processes=hosts.count,
        process_id=hosts.index,
        cluster_detection_method=None if hosts.detect else "deactivate",
    )
    # jax installs its own handler of SIGTERM, which would keep the process alive.
    signal.signal(signal.SIGTERM, on_terminate or signal.SIG_DFL)


def _listener(host: str, port: int) -> socket.socket:
    """Listen at one address of this machine."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_loopback and host not in ("localhost", address[0]):
            print(f"note: {host} means {address[0]} here, so that only processes of this machine join", file=sys.stderr)
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"hosts.coordinator: cannot listen at {host}:{port} here ({error}); give an address of host 0, and a free "
            "port"
        ) from None


def _own_address() -> str:
    """Return the address of this machine that other machines reach, a loopback address if there is none."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        found = set()
    return min(found, key=lambda address: (ipaddress.ip_address(address).is_loopback, address), default="127.0.0.1")


def _broadcast_text(text: str) -> str:
    """Return host 0's text, at most 1024 bytes, on all hosts."""
    import numpy as np
    from jax.experimental import multihost_utils

    message = np.frombuffer(text.encode()[:1024].ljust(1024, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8).tobytes().rstrip(b"\0").decode()
