"""SIGTERM and SIGINT, to one process and to several hosts."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import pytest
from safetensors.numpy import load_file

import train.preemption
from tests.train.multihost.test_tcp_group import HOST, all_joined, ended, free_port
from train.checkpoint.manifest import read_manifest
from train.evaluate import Evaluator
from train.loop import run
from train.preemption import PREEMPTED, Preemption
from train.summary import read_record

# Counts programs, of which host 1 waits for those of host 0; at 20 the next is being compiled, or evaluated.
BODY = """
    from train.preemption import Preemption
    preemption, done = Preemption().listen(), 0
    def save():
        time.sleep(float(sys.argv[5]))
        return f"{done} are saved"
    with preemption.of_hosts(host_group), preemption.saving(save):
        print("ready", flush=True)
        while True:
            with preemption.launching():
                done += 1
                if done % 5 == 0:
                    host_group.exchange(done)
            if done == 20:
                print("at 20", flush=True)
                time.sleep(60)
"""
ALONE = """
import sys, time
from train.multihost.hosts import SINGLE_HOST as host_group
with host_group:
    print("joined", flush=True)
"""


def started(program, *arguments):
    words = [sys.executable, "-c", program, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def all_ready(processes):
    all_joined(processes)
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_saves_while_its_main_thread_is_busy(number):
    process = started(ALONE + BODY, 0, 1, 0, 0, 0.0)
    all_ready([process])
    assert process.stdout.readline() == "at 20\n"
    process.send_signal(number)
    ((code, out, errors),) = ended([process])
    assert (code, errors) == (PREEMPTED, "")
    assert out == f"preempted by {number.name}: 20 are saved; start the run again, and it goes on from there\n"


def test_a_second_signal_ends_the_process_at_once():
    process = started(ALONE + BODY, 0, 1, 0, 0, 30.0)
    all_ready([process])
    assert process.stdout.readline() == "at 20\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert ended([process]) == [(128 + signal.SIGTERM, "", "")]


@pytest.mark.parametrize("to", [0, 1, 2])
def test_a_signal_to_one_host_ends_all_after_the_same_program(to):
    port = free_port()
    processes = [started(HOST + BODY, index, 3, port, 30, 0.0) for index in range(3)]
    all_ready(processes)
    if to == 2:
        assert processes[0].stdout.readline() == "at 20\n"
    processes[to].send_signal(signal.SIGTERM)
    found = ended(processes)
    assert [code for code, *_ in found] == [PREEMPTED] * 3, found
    assert [errors for *_, errors in found] == [""] * 3
    assert f"preempted by SIGTERM on host {to} (" in found[0][1] and " are saved; " in found[0][1]


def test_an_error_while_saving_is_reported():
    process = started(ALONE + BODY.replace("time.sleep(float(sys.argv[5]))", "raise OSError('disk full')"))
    all_ready([process])
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][::2] == (1, "stopped: SIGTERM, but the run could not be saved: disk full\n")


def exit_code_of(program):
    """Return the code with which a program ends that sends its own process a signal; it is given the `Preemption`."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    codes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train.preemption, "_exit", lambda code: codes.append(code) or os.kill(os.getpid(), signal.SIGUSR1)
        )
        try:
            preemption = Preemption().listen()
            signal.signal(signal.SIGUSR1, signal.default_int_handler)
            with pytest.raises(KeyboardInterrupt):
                program(preemption)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    (code,) = codes
    return code


def test_a_run_ended_in_its_evaluation_equals_an_unbroken_one(finished, monkeypatch, tmp_path):
    task = dataclasses.replace(finished.config.task, tokenizer=finished.folder / "tokenizer")
    settings = dataclasses.replace(finished.config.run, folder=tmp_path / "run", evaluate_every=4, best="loss", keep=9)
    config = dataclasses.replace(finished.config, task=task, run=settings)
    evaluate, evaluated = Evaluator.evaluate, []

    def interrupted(self, params, step, names):
        evaluated.append(step)
        if evaluated == [4, 8]:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, params, step, names)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", interrupted)
        assert exit_code_of(functools.partial(run, config)) == PREEMPTED
    checkpoints = tmp_path / "run" / "checkpoints"
    assert read_manifest(checkpoints / "8")["score"] is None
    run(config)
    lines = [line for line in read_record(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == [4, 8, 12]  # that of 8 again, because it was interrupted
    assert read_manifest(checkpoints / "8")["score"] == pytest.approx(-lines[1]["loss"])
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (settings.folder, finished.folder))
    chex.assert_trees_all_equal(ours, theirs)
