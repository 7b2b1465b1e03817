"""The commands, code and links of README.md and docs/ do what the pages say."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import flaxbert
from flaxbert import cli
from tests.flags import COMPILER
from tests.train import corpora
from train.aot import pods
from train.benchmark.speed import main
from train.benchmark.text import main as benchmark_text
from train.command import load_config, parse_flags
from train.command import main as train
from train.data.pretraining.preparation import Preparation, prepare_store
from train.search.settings import SearchConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def commands_of(page: str) -> list[str]:
    """Return the commands of a page's bash blocks, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_python(arguments: list[str], folder: Path) -> str:
    """Return what a Python process in `folder` prints, with this checkout's packages."""
    # One device: that compiles faster than eight.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": COMPILER}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A command that several pages show is tested once.
COMMANDS = list(dict.fromkeys(command for page in PAGES.values() for command in commands_of(page)))
QUICKSTART, TESTS = commands_of(README)[:2]
PREDICTING = commands_of(PAGES[ROOT / "docs" / "predicting.md"])
CONVERTING = commands_of(PAGES[ROOT / "docs" / "converting.md"])
# Also inside srun, gcloud and Kubernetes manifests, where other words stand around them.
TRAIN = re.findall(r"(?:^|(?<=[\s\"']))python -m train (.*?)(?=[\"']?$|' ')", "\n".join(PAGES.values()), re.MULTILINE)
(PREPARE,) = [command for command in COMMANDS if " -m train.data.prepare " in command]
(SPEED,) = [command for command in COMMANDS if " -m train.benchmark " in command and "--json" in command]
TEXT = [command for command in COMMANDS if " -m train.benchmark.text " in command]
(BENCHMARK,) = [command for command in COMMANDS if " -m train.benchmark.alternate " in command]
(PODS,) = [command for command in COMMANDS if " -m train.aot.pods " in command]
ESTIMATE = [command for command in COMMANDS if " -m train.aot " in command]


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 120


def test_every_command_is_one_that_a_test_runs_or_parses():
    modules = ("train", "train.data.prepare", "train.benchmark", "train.benchmark.text", "train.benchmark.alternate")
    modules += ("train.aot", "train.aot.pods", "train.benchmark.decoding")
    modules += ("train.benchmark.pointing", "train.data.casing_pairs", "train.checkpoint", "train.search")
    modules += ("train.benchmark.saving", "tests.faults.kill", "tests.faults.mutate", "tests.faults.disk")
    modules += ("train.ledger", "train.benchmark.embedding")
    known = [f"python -m {module} " for module in modules]
    known += ["python3 -m venv ", ".venv/bin/pytest", "pip install ", "srun ", "gcloud "]
    tested = {*CONVERTING, *PREDICTING, "python -m tests.gpu.attention"}
    assert [command for command in COMMANDS if command not in tested and not command.startswith(tuple(known))] == []


def test_search_commands_are_understood():
    searches = [command for command in COMMANDS if command.startswith("python -m train.search ")]
    assert searches
    for command in searches:
        config, *flags = shlex.split(command)[3:]
        parse_flags(SearchConfig(**vars(load_config(ROOT / config))), flags)


def test_links_lead_to_files_and_headings():
    missing = []
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)(.*?)\)", text):
            path, _, heading = target.partition("#")
            file = page.parent / path if path else page
            lines = PAGES.get(file.resolve(), "").splitlines()
            headings = [
                re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in lines
                if line.startswith("#")
            ]
            if not file.exists() or (heading and heading not in headings):
                missing.append(f"{page.name}: {target}")
    assert missing == []


def test_the_map_of_the_code_names_existing_files():
    page = PAGES[ROOT / "docs" / "contributing.md"]
    tables = dict(re.findall(r"^\| in (\w+)/ \|.*?\n(.*?)\n\n", page, re.DOTALL | re.MULTILINE))
    assert tables.keys() == {"flaxbert", "train"}
    for package, table in tables.items():
        names = [name for row in table.splitlines() for name in re.findall(r"`([^`]*)`", row.split("|")[1])]
        assert len(names) > 10 and [name for name in names if not (ROOT / package / name).exists()] == []


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = re.findall(r"(?:-e '(?:flaxbert|\.)|[( `]|^)\[([a-z,]+)\](?!\()", "\n".join(PAGES.values()))
    named = {name for group in installed for name in group.split(",")}
    assert {"train", "test", "cuda", "tpu", "torch"} <= named <= set(extras)


def test_python_blocks_of_docs(tmp_path, finished):
    """Run all blocks of a page, one after another, where a quickstart run has finished; pages share a process."""
    program = ["import os"]
    for page, text in PAGES.items():
        code = "\n".join(blocks(text, "python"))
        if code and page.name != "README.md":
            folder = tmp_path / page.stem
            (folder / "runs" / "quickstart").mkdir(parents=True)
            (folder / "runs" / "quickstart" / "model").symlink_to(finished.folder / "model")
            program.append(f"os.chdir({str(folder)!r}); exec(compile({code!r}, {page.name!r}, 'exec'), {{}})")
    assert len(program) > 3
    run_python(["-c", "\n".join(program)], tmp_path)


def test_ci_runs_the_test_command():
    steps = (ROOT / ".ci" / "run").read_text()
    for step in TESTS.replace("pip install -e", "pip install -q --no-compile -e").split(" && "):
        assert step in steps


def test_python_block(tmp_path, finished):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "model").symlink_to(finished.folder / "model")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(ast.literal_eval(run_python(["-c", code], tmp_path))) == 5
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).is_file()


def test_convert_commands(tmp_path, finished, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("uncased_L-12_H-768_A-12.zip", "w") as archive:
        for file in (ROOT / "tests" / "flaxbert" / "fixtures" / "tf1" / "pretraining").iterdir():
            archive.write(file, f"uncased_L-12_H-768_A-12/{file.name}")
    Path("runs").mkdir()
    Path("runs/quickstart").symlink_to(finished.folder)
    for command in CONVERTING:
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
    for command in PREDICTING:
        if command.startswith("flaxbert export "):
            # In its own process: the export traces symbolic shapes, which the checks of shapes in tests do not know.
            shown.append(run_python(["-m", *shlex.split(command)], tmp_path))
        else:
            assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
            shown.append(capsys.readouterr().out)
    fill_mask, classify, tag, answer, _, embed, _, beams, streamed, export = shown
    assert all("Emma was" in text for text in (beams, streamed))
    assert tag.strip() and answer.strip()
    assert len(fill_mask.splitlines()) >= 3 and "Return a new" in fill_mask
    assert [json.loads(line)["input"] for line in classify.splitlines()] == Path("reviews.txt").read_text().splitlines()
    assert "vectors.npy" in embed and np.load("vectors.npy").shape == (2, 32)
    assert float(re.search(r"at most (\S+) on random input", export)[1]) < 1e-5


def test_train_commands_are_understood(capsys):
    assert len(TRAIN) >= 20 and sum("--hosts.detect" in command for command in TRAIN) == 4
    for command in TRAIN:
        file, *flags = shlex.split(command)
        if "--help" not in flags:
            config = parse_flags(load_config(ROOT / file), flags)
            assert config.hosts.detect == ("--hosts.detect" in flags)
            assert (config.hosts.count == 2) == ("--hosts.count" in flags)


def test_help_command_lists_the_flags(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = [command for command in COMMANDS if command.endswith(" --help")]
    with pytest.raises(SystemExit) as ended:
        train(shlex.split(command)[3:])
    assert ended.value.code == 0 and "--optim.learning-rate" in capsys.readouterr().out


def test_prepare_command_and_the_run_after_it(tmp_path):
    (tmp_path / "wiki_en.txt").write_text("\n\n".join(f"It is {i}. It was {i - 1}.\nNow {i}." for i in range(200)))
    run_python(shlex.split(PREPARE)[1:], tmp_path)
    after = max((command for command in COMMANDS if " -m train configs/pretrain_tiny.py" in command), key=len)
    words = shlex.split(after.replace("configs/", f"{ROOT}/configs/"))
    # A stage like the rest of the run: both are one program.
    small = ["--run.steps", "2", "--task.stages.0.steps", "1", "--task.stages.0.max-length", "None"]
    small += ["--model.sizes.hidden-size", "16"]
    assert "eval dev" in run_python([*words[1:], *small], tmp_path)


def test_speed_command(tmp_path, monkeypatch, capsys):
    words = shlex.split(SPEED)
    assert words[:3] == ["python", "-m", "train.benchmark"]
    small = shlex.split("--sizes tiny --lengths 32 --rows 4 --fill 0.75 --peers eager sdpa --rounds 2")
    monkeypatch.chdir(tmp_path)
    assert main([*words[3:], *small, "--seconds", "0.01"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + 6 and "| tiny | 4 x 32, float32 | train | flaxbert |" in shown[2]
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert [(r["kind"], r["implementation"]) for r in results] == [
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
        assert (r["compile_seconds"] > 0) == (r["implementation"] == "flaxbert")


def test_text_benchmark_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wiki_en.txt").write_text("\n".join(corpora.lines(corpora.documents(300))))
    Path("vocab.txt").write_text("\n".join(corpora.tokenizer().vocabulary))
    prepare_store(Preparation(("wiki_en.txt",), Path("runs/wikipedia"), tokenizer=Path("vocab.txt"), workers=1))
    to_tokens, to_batches = (shlex.split(command)[3:] for command in TEXT)
    assert benchmark_text([*to_tokens, "--workers", "1", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"prepare, 1 processes: [\d,]+ tokens/s \([\d,]+ to [\d,]+\)", shown[0])
    ours, library = (int(re.search(r": ([\d,]+) tokens", line)[1].replace(",", "")) for line in shown[:2])
    ratio = re.fullmatch(r"the library alone is (\d+\.\d\d) times as fast", shown[2])
    assert ratio and abs(float(ratio[1]) - library / ours) < 0.011  # of speeds that are shown rounded
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


def test_table_of_estimates_command_is_understood(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(PODS)
    assert pods.main([*words[3:], "--table"]) == 0
    assert capsys.readouterr().out in PAGES[ROOT / "docs" / "pods.md"]


def test_alternate_command_is_understood():
    words = shlex.split(BENCHMARK)
    assert words[:3] == ["python", "-m", "train.benchmark.alternate"] and len(words) == 5
    sides = [shlex.split(word) for word in words[3:]]
    assert [side[:3] for side in sides] == [
        ["python", "-m", name] for name in ("train", "train.benchmark.torch_classifier")
    ]
    ours, theirs = (parse_flags(load_config(ROOT / side[3]), side[4:]) for side in sides)
    assert ours == theirs


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
    assert loss <= unigram - 1.0
    print(f"loss {loss}, unigram {unigram}, {seconds} s at {time.strftime('%F')}")
