"""README's commands and code do what it says."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import flaxbert
from flaxbert import cli
from tests.flags import COMPILER
from tests.train import corpora
from train.benchmark.speed import main
from train.benchmark.text import main as benchmark_text
from train.command import load_config, parse_flags
from train.data.corpus.preparation import Preparation, prepare

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
QUICKSTART, TESTS, SLOW, *OTHERS, BENCHMARK = COMMANDS
CONVERT = [command for command in OTHERS if re.match("flaxbert (convert|inspect|verify|average) ", command)]
PREDICT = [command for command in OTHERS if re.match("flaxbert (predict|export) ", command)]
ESTIMATE = [command for command in OTHERS if " -m train.aot " in command]
LAUNCH = re.findall(r"(?<=[\s\"])python -m train .*?(?=\"?$)", (ROOT / "docs" / "launch.md").read_text(), re.MULTILINE)
(PREPARE,) = [command for command in OTHERS if " -m train.data.prepare " in command]
(SPEED,) = [command for command in OTHERS if " -m train.benchmark " in command]
TEXT = [command for command in OTHERS if " -m train.benchmark.text " in command]
TRAIN = [command for command in OTHERS if command not in (*CONVERT, *PREDICT, *ESTIMATE, PREPARE, SPEED, *TEXT)]


def test_ci_runs_the_test_command():
    steps = (ROOT / ".ci" / "run").read_text()
    for step in TESTS.replace("pip install -e", "pip install -q -e").split(" && "):
        assert step in steps


def test_python_block(tmp_path, finished):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "model").symlink_to(finished.folder / "model")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert len(ast.literal_eval(shown)) == 5
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).is_file()


def test_convert_commands(tmp_path, finished, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("uncased_L-12_H-768_A-12.zip", "w") as archive:
        for file in (ROOT / "tests" / "flaxbert" / "fixtures" / "tf1" / "pretraining").iterdir():
            archive.write(file, f"uncased_L-12_H-768_A-12/{file.name}")
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(finished.folder)
    assert len(CONVERT) == 6
    for command in CONVERT:
        assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert all((tmp_path / name / "model.safetensors").is_file() for name in ("averaged", "bert", "classifier"))
    assert flaxbert.from_pretrained("classifier")[0].config.num_labels == 2


def test_predict_commands(tmp_path, finished, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(finished.folder)
    for run, head in {"sst2": "Sequence", "wnut17": "Token"}.items():
        made = ["runs/quickstart/model", f"runs/{run}/model", "--head", f"BertFor{head}Classification"]
        assert cli.main(["convert", *made]) == 0
    made = ["runs/quickstart/model", "runs/squad2/model", "--head", "BertForQuestionAnswering"]
    assert cli.main(["convert", *made]) == 0
    Path("reviews.txt").write_text("It is a statement.\nReturn an object.\n")
    capsys.readouterr()
    shown = []
    (encoder,) = [command for command in CONVERT if command.endswith("--head BertModel")]
    assert cli.main(shlex.split(encoder)[1:]) == 0
    capsys.readouterr()
    for command in PREDICT:
        if command.startswith("flaxbert predict "):
            assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
            shown.append(capsys.readouterr().out)
        else:  # in a process of its own: here shapes are checked by what knows no symbols for them
            done = subprocess.run([sys.executable, "-m", *shlex.split(command)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            shown.append(done.stdout)
    fill_mask, classify, tag, answer, embed, export = shown
    assert tag.strip() and answer.strip()
    assert len(fill_mask.splitlines()) >= 3 and "Return a new" in fill_mask
    assert [json.loads(line)["input"] for line in classify.splitlines()] == Path("reviews.txt").read_text().splitlines()
    assert "vectors.npy" in embed and np.load("vectors.npy").shape == (2, 32)
    assert float(re.search(r"at most (\S+) from the model", export)[1]) < 1e-5


def test_launch_recipes_are_found():
    assert len(LAUNCH) == 8 and sum("--hosts.detect" in command for command in LAUNCH) == 3


def test_launch_recipes_are_understood():
    for command in LAUNCH:
        words = shlex.split(command)
        config = parse_flags(load_config(ROOT / words[3]), words[4:])
        assert config.hosts.detect == ("--hosts.detect" in words) and (config.hosts.count == 2) == ("2" in words)


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_are_understood(command, tmp_path):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "train"]
    help_asked = words[-1] == "--help"
    done = subprocess.run(
        [sys.executable, *words[1:], *(() if help_asked else ("--help",))], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--optim.learning-rate" in done.stdout


def test_prepare_command_and_the_run_after_it(tmp_path):
    (tmp_path / "wiki_en.txt").write_text("\n\n".join(f"It is {i}. It was {i - 1}.\nNow {i}." for i in range(200)))
    # One device: that compiles faster than eight.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": COMPILER}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *shlex.split(PREPARE)[1:]], **how)
    assert done.returncode == 0, done.stderr
    after = [command for command in TRAIN if "configs/pretrain_tiny.py" in command]
    words = shlex.split(after[-1].replace("configs/", f"{ROOT}/configs/"))  # that with the most flags
    # A stage like the rest of the run: both are one program.
    small = ["--run.steps", "2", "--task.stages.0.steps", "1", "--task.stages.0.max-length", "None"]
    small += ["--model.sizes.hidden-size", "16"]
    done = subprocess.run([sys.executable, *words[1:], *small], **how)
    assert done.returncode == 0 and "eval dev" in done.stdout, done.stderr


def test_speed_command(tmp_path, monkeypatch, capsys):
    words = shlex.split(SPEED)
    assert words[:3] == ["python", "-m", "train.benchmark"]
    small = shlex.split("--sizes tiny --lengths 32 --rows 4 --fill 0.75 --peers eager sdpa --rounds 2")
    monkeypatch.chdir(tmp_path)
    assert main([*words[3:], *small, "--seconds", "0.01"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + 6 and "| tiny | 4 x 32, float32 | train | flaxbert |" in shown[2]
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert [(r["kind"], r["contestant"]) for r in results] == [
        (kind, name)
        for kind in ("train", "forward")
        for name in ("flaxbert", "transformers, eager", "transformers, sdpa")
    ]
    losses = [r["loss"] for r in results]
    assert max(losses) - min(losses) < 1e-5
    for r in results:
        assert 0 < r["lowest_seconds"] <= r["step_seconds"] <= r["highest_seconds"]
        assert r["tokens_per_second"] == pytest.approx(4 * 24 / r["step_seconds"])
        assert r["mfu"] is None and r["peak_bytes"] is None  # of a CPU neither is known
        assert (r["compile_seconds"] > 0) == (r["contestant"] == "flaxbert")


def test_text_benchmark_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wiki_en.txt").write_text("\n".join(corpora.lines(corpora.documents(300))))
    Path("vocab.txt").write_text("\n".join(corpora.tokenizer().vocabulary))
    prepare(Preparation(("wiki_en.txt",), Path("runs/wikipedia"), tokenizer=Path("vocab.txt"), workers=1))
    to_tokens, to_batches = (shlex.split(command)[3:] for command in TEXT)
    assert benchmark_text([*to_tokens, "--workers", "1", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"prepare, 1 processes: [\d,]+ tokens/s \([\d,]+ to [\d,]+\)", shown[0])
    ours, library = (int(re.search(r": ([\d,]+) tokens", line)[1].replace(",", "")) for line in shown[:2])
    assert shown[2] == f"the library alone is {library / ours:.2f} times as fast"
    assert benchmark_text([*to_batches, "--rounds", "1", "--seconds", "0.01"]) == 0
    assert "pairs of 512 in rows of 512: " in capsys.readouterr().out


# That with a preset takes half a minute; test_aot_pretraining.py compiles the same with fewer rows and layers.
PRESET_IS_SLOW = [pytest.param(c, marks=[pytest.mark.slow] * ("--preset" in c)) for c in ESTIMATE]


@pytest.mark.parametrize("command", PRESET_IS_SLOW)
def test_estimate_command_is_understood(command):
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "train.aot"]
    fast = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}  # a program less well optimized, in a third of the time
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, env=os.environ | fast)
    if importlib.util.find_spec("libtpu") is None:
        assert (done.returncode, done.stderr) == (
            2, "error: the TPU compiler is not installed; pip install -e '.[tpu]' (x86 Linux)\n",
        )  # fmt: skip
    else:
        assert done.returncode == 0 and "estimated" in done.stdout


def test_benchmark_command_is_understood():
    words = shlex.split(BENCHMARK)
    assert words[:3] == ["python", "-m", "train.benchmark.alternate"] and len(words) == 5
    # Both sides answer --help instead of training.
    commands = [word.replace("python", sys.executable, 1) + " --help" for word in words[3:]]
    done = subprocess.run([sys.executable, *words[1:3], *commands], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("--optim.learning-rate") == 2
    assert re.search(r"\d s  \S+ -m train configs/sst2.py", done.stdout)


@pytest.mark.slow
def test_quickstart_command_on_a_clean_clone(tmp_path):
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    subprocess.run(["bash", "-c", QUICKSTART], cwd=tmp_path / "clone", check=True, env=environment)
    folder = tmp_path / "clone" / "runs" / "quickstart"
    summary = (folder / "summary.md").read_text()
    unigram = float(re.search(r"unigram entropy[^|]*\| ([0-9.]+)", summary)[1])
    loss = float(re.search(r"\| dev \| \d+ \| [0-9.]+ \| ([0-9.]+)", summary)[1])
    seconds = float(re.search(r"seconds of training and evaluation \| ([0-9.]+)", summary)[1])
    assert loss <= unigram - 0.5
    print(f"loss {loss}, unigram {unigram}, {seconds} s at {time.strftime('%F')}")
