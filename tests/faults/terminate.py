"""Send signals to runs at random moments: `python -m tests.faults.terminate --signals 100`.

Each run of a chain is ended by SIGTERM or SIGINT in a phase that is drawn, and the next one goes on from it; a last
run, without a signal, must reach the parameters of an unbroken run, bit for bit. All processes must exit with 75, and
the step that is saved must be that of the signal or the next one. A phase that no signal has hit is a failure.
"""

import argparse
import collections
import dataclasses
import os
import pickle
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.faults.progress import print_progress
from tests.flags import with_devices
from tests.runs import masked_lm_in

ROOT = Path(__file__).parents[2]
PHASES = ("start", "setup", "compile step", "step", "data", "compile evaluation", "evaluate", "save", "export")
_CONFIG = """
import pickle
from pathlib import Path
config = pickle.loads(Path(__file__).with_suffix(".pickle").read_bytes())
"""
_STEPS = 36


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a signal did: the phase that it hit, the steps done then and saved, and the seconds until the exit."""

    phase: str
    step: int
    saved: int
    seconds: float


def write_config(folder: Path) -> Path:
    """Write the config of a small run below `folder`; return its file."""
    config = masked_lm_in(folder)
    run = dataclasses.replace(config.run, steps=_STEPS, log_every=1, checkpoint_every=10, evaluate_every=4)
    (folder / "config.py").write_text(_CONFIG)
    (folder / "config.pickle").write_bytes(pickle.dumps(dataclasses.replace(config, run=run)))
    return folder / "config.py"


def start(config: Path, folder: Path, count: int, *, cache: bool = False) -> list[subprocess.Popen[bytes]]:
    """Start the processes of a run; its folder is FOLDER/run, the output of process I is in FOLDER/output-I."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": with_devices(2 // count), "OBSERVED": str(folder)}
    flags = ["--run.folder", str(folder / "run"), "--run.compilation-cache" if cache else "--run.no-compilation-cache"]
    flags += (
        ["--task.tokenizer", str(config.parent / "unbroken" / "run" / "tokenizer")] if folder.name != "unbroken" else []
    )
    processes = []
    for index in range(count):
        words = [sys.executable, "-m", "tests.faults.observed_run", str(config), *flags]
        if count > 1:
            words += ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", str(count)]
            words += ["--hosts.index", str(index)]
        with (folder / f"output-{index}").open("ab") as output:
            processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output))
    return processes


def saved_step(folder: Path) -> int:
    """Return the newest complete checkpoint of a run."""
    names = [path.name for path in (folder / "run" / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_phase(folder: Path, phase: str, processes: list[subprocess.Popen[bytes]]) -> bool:
    """Wait until all processes take signals and process 0 is in the phase; return False if the run ends before."""
    files = [folder / f"phase-{index}" for index in range(len(processes))]
    while all(process.poll() is None for process in processes):
        if all(file.exists() for file in files) and files[0].read_text() == phase:
            return True
        time.sleep(0.002)
    return False


def interrupt(config: Path, folder: Path, count: int, phase: str, draw: random.Random) -> Outcome | None:
    """Start or resume a run, and end it by a signal in the phase; None if it was not reached."""
    for path in folder.glob("*-[0-9]"):
        if not path.name.startswith("output"):
            path.unlink()
    processes = start(config, folder, count)
    if not wait_for_phase(folder, phase, processes):
        assert [process.wait(timeout=300) for process in processes] == [0] * count, (folder / "output-0").read_text()
        return None
    time.sleep(draw.random() * (1.0 if phase.startswith("compile") else 0.02))
    number = draw.choice((signal.SIGTERM, signal.SIGINT))
    # Before the hosts have joined, they cannot tell one another.
    sent = processes if phase == "start" else draw.choice([[process] for process in processes] + [processes])
    began = time.monotonic()
    for process in sent:
        process.send_signal(number)
    codes = [process.wait(timeout=300) for process in processes]
    seconds = time.monotonic() - began
    if codes == [0] * count:  # the run was at its end
        return None
    output = "".join((folder / f"output-{index}").read_text() for index in range(count))
    assert codes == [75] * count, (phase, codes, output[-3000:])
    hits = [(folder / f"hit-{index}").read_text().split("\n") for index in range(count)]
    steps = [int(step) for _, step in hits]
    saved = saved_step(folder)
    # The phases of a step are left as they end: 1 more for the step that ran, 1 for hosts that are ahead.
    if max(steps):
        assert max(steps) <= saved <= max(steps) + 1, (phase, steps, saved, output[-3000:])
    return Outcome(hits[0][0], max(steps), saved, seconds)


def chain(config: Path, folder: Path, count: int, phases: Sequence[str], draw: random.Random) -> Iterator[Outcome]:
    """Interrupt a run in each of the phases; compare its end with that of the unbroken run."""
    folder.mkdir()
    for phase in phases:
        if (outcome := interrupt(config, folder, count, phase, draw)) is not None:
            yield outcome
    assert [process.wait(timeout=300) for process in start(config, folder, count)] == [0] * count
    ours, theirs = ((place / "run/model/model.safetensors").read_bytes() for place in (folder, unbroken(config, count)))
    assert ours == theirs, f"{folder}: other parameters than those of the unbroken run"
    shutil.rmtree(folder)


def unbroken(config: Path, count: int) -> Path:
    """Return the folder of a run without signals, which is made once for each number of processes."""
    folder = config.parent / ("unbroken" if count == 1 else f"unbroken-{count}")
    if not (folder / "run/model").exists():
        folder.mkdir()
        codes = [process.wait(timeout=300) for process in start(config, folder, count)]
        assert codes == [0] * count, (folder / "output-0").read_text()
    return folder


def main() -> int:
    """Interrupt runs until there are enough signals; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    outcomes: dict[int, list[Outcome]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder))
        unbroken(config, 1)
        try:
            while (done := sum(map(len, outcomes.values()))) < arguments.signals:
                count = 1 if len(outcomes[1]) <= len(outcomes[2]) else 2
                phases = sorted(draw.sample(PHASES, 6), key=PHASES.index)
                for outcome in chain(config, Path(folder) / f"chain-{done}-{count}", count, phases, draw):
                    outcomes[count].append(outcome)
                    done += 1
                    place = f"{count} processes, {outcome.phase}"
                    print_progress(done, arguments.signals, f"{place}: saved, ended after {outcome.seconds:.2f} s")
                print("the run that went on from them: same parameters", flush=True)
        finally:
            report(outcomes)
    missed = [
        (count, phase) for count, found in outcomes.items() for phase in PHASES if phase not in {o.phase for o in found}
    ]
    if missed:
        print(f"FAILED: phases that no signal has hit: {missed}")
    return int(bool(missed))


def report(outcomes: dict[int, list[Outcome]]) -> None:
    """Print a row for each number of processes and phase."""
    print("| processes | phase | signals | exit code 75, step saved | median s to exit | longest s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count, found in sorted(outcomes.items()):
        for phase in (*dict.fromkeys([*PHASES, *(outcome.phase for outcome in found)]), "all"):
            seconds = [outcome.seconds for outcome in found if phase in (outcome.phase, "all")]
            if seconds:
                numbers = f"{len(seconds)} | {len(seconds)} | {statistics.median(seconds):.2f} | {max(seconds):.2f}"
                print(f"| {count} | {phase} | {numbers} |")


if __name__ == "__main__":
    sys.exit(main())
