"""Mistakes at the command line: one clear message, exit code 2, nothing written."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert import AttentionImplementation
from train import environment
from train.command import load_config, main, parse_flags
from train.config import RENAMED_SETTINGS, Config, Model, Run
from train.optim import Optim
from train.optim.algorithms import Lamb
from train.optim.schedules import Polynomial
from train.search.__main__ import main as search
from train.tasks.pretraining import Pretraining
from train.tasks.question_answering import QuestionAnswering
from train.tasks.sequence_classification import SequenceClassification

CONFIG = """
from pathlib import Path
from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.tasks.question_answering import QuestionAnswering
from train.tasks.sequence_classification import SequenceClassification

HERE = Path(__file__).parent
config = Config(
    task=SequenceClassification(train=str(HERE / "train.tsv"), dev=str(HERE / "dev.tsv"), tokenizer=HERE / "vocab.txt"),
    model=Model(sizes=BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)),
    run=Run(folder=HERE / "made", batch_size=8, epochs=1),
)
"""


@pytest.fixture
def config_file(classification, tmp_path):
    file = tmp_path / "job.py"
    file.write_text(CONFIG)
    return file


def refused(config_file, capsys, *flags):
    """Runs it and returns its one message."""
    try:
        code = main([str(config_file), *flags])
    except SystemExit as stop:  # tyro's way to refuse a flag
        code = stop.code
    assert code == 2
    assert not (config_file.parent / "made").exists()
    captured = capsys.readouterr()
    return " ".join((captured.err + captured.out).split())


def test_the_config_runs(config_file):
    # Packed, because every length of rows would be compiled by itself.
    assert main([str(config_file), "--run.epochs", "2", "--optim.learning-rate", "1e-3", "--task.packed"]) == 0
    record = json.loads((config_file.parent / "made" / "run.json").read_text())
    assert record["run"]["epochs"] == 2.0 and record["optim"]["learning_rate"] == 1e-3


def test_unknown_flag_names_the_near_one(config_file, capsys):
    message = refused(config_file, capsys, "--optim.learnin-rate", "1")
    assert "--optim.learnin-rate" in message and "--optim.learning-rate" in message


def test_a_wrong_flag_names_the_command_that_lists_the_flags(config_file, capsys):
    assert "python -m train CONFIG --help" in refused(config_file, capsys, "--foo", "1")
    with pytest.raises(SystemExit, match="2"):
        search([str(config_file), "--foo", "1"])
    assert "python -m train.search CONFIG --help" in " ".join(capsys.readouterr().err.split())


OPTIM = Optim(algorithm=Lamb(), schedule=Polynomial(), layer_decay=0.9)


def flagged(*flags):
    """The optimizer's settings with these flags, of a config that chooses LAMB and a polynomial."""
    default = Config(task=Pretraining(text="pydoc:"), run=Run(folder=Path("made"), steps=1), optim=OPTIM)
    return parse_flags(default, flags).optim


def test_flags_of_the_chosen_optimizer_and_schedule():
    assert flagged() == OPTIM
    found = flagged("--optim.algorithm.beta1", "0.8", "--optim.schedule.power", "0.5", "--optim.frozen", "a/b", "c")
    expected = {"algorithm": Lamb(beta1=0.8), "schedule": Polynomial(power=0.5), "frozen": ("a/b", "c")}
    assert found == dataclasses.replace(OPTIM, **expected)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("--optim.algorithm.beta3", "--optim.algorithm.beta1"),
        ("--optim.beta2", "--optim.algorithm.beta2"),
        ("--optim.schedule.powr", "--optim.schedule.power"),
        ("--optim.schedule.cycles", ""),  # another schedule's
        ("--optim.algorithm.decay-rate", ""),  # another algorithm's
    ],
)
def test_flags_that_the_choice_does_not_have(wrong, near, capsys):
    with pytest.raises(SystemExit) as stop:
        flagged(wrong, "1")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and f"Unrecognized options: {wrong}" in message and near in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--optim.learning-rate", "fast"), "fast"),
        (("--optim.warmup", "2"), "warmup is 2.0; allowed: 0.0 to 1.0"),
        (("--run.steps", "5", "--run.epochs", "1"), "exactly one of epochs (1.0) and steps (5)"),
        (("--run.folder", ""), "folder is '.', the current folder; give one for the files of this run"),
        (("--run.batch-size", "0"), "batch_size is 0"),
        (("--run.batch-size", "9"), "batch_size is 9, which does not divide over 8 devices"),
        (
            ("--run.gradient-accumulation-steps", "3"),
            "over 8 devices and 3 gradient accumulation steps; use a multiple of 24",
        ),
        (("--mesh.fsdp", "3"), "fsdp 3 x tensor 1 does not fit: there are 8 devices"),
        (("--mesh.tensor", "8", "--run.batch-size", "8"), "heads of size 2 over 8 devices of tensor"),
        (("--model.sizes.hidden-size", "33"), "hidden_size 33 is not divisible by num_attention_heads 2"),
        (("--task.max-length", "600"), "max_length is 600; allowed: 3 to the model's number of positions, 512"),
        (("--task.train", "none.tsv"), "none.tsv does not exist"),
        (("--task.tokenizer", "none"), "none: no such file"),
        (("--task.labels", "short", "tall"), "train.tsv:13: label 'long'"),
        (("--model.pretrained", "none"), "no such file"),
        (("--optim.algorithm.beta2", "1"), "beta2 is 1.0; allowed: 0.0 to 0.9999999"),
        (("--optim.frozen", "bert/embeding"), "frozen has 'bert/embeding': no such parameters; bert has embeddings,"),
    ],
)
def test_wrong_values(config_file, capsys, flags, expected):
    assert expected in refused(config_file, capsys, *flags)


def test_an_interrupted_run_ends_without_a_traceback(config_file, capsys, monkeypatch):
    def interrupted(config, preemption):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.loop.run", interrupted)
    assert main([str(config_file)]) == 130
    assert capsys.readouterr().err.startswith("interrupted; start the run again, and it resumes")


def test_a_malformed_row_is_named(config_file, capsys):
    train = config_file.parent / "train.tsv"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([*lines[:4], "no tab here", *lines[4:]]) + "\n")
    assert "train.tsv:5" in refused(config_file, capsys)


def test_a_tokenizer_larger_than_the_model_is_refused(config_file, capsys, finished, tmp_path):
    flags = ("--model.pretrained", str(finished.folder / "model"), "--task.tokenizer", str(vocabulary(tmp_path)))
    assert "the tokenizer has 5000 tokens" in refused(config_file, capsys, *flags)


def vocabulary(folder):
    file = folder / "large.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(4995))]) + "\n")
    return file


def test_a_missing_config_names_its_neighbours(tmp_path, capsys):
    (tmp_path / "real.py").write_text("")
    assert main([str(tmp_path / "reel.py")]) == 2
    message = capsys.readouterr().err
    assert "reel.py: no such config" in message and "real.py" in message


def test_a_file_without_a_config(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("")
    assert main([str(tmp_path / "empty.py")]) == 2
    assert "must define `config`" in capsys.readouterr().err


def test_help_and_no_arguments(config_file, capsys):
    assert main(["--help"]) == 0
    assert "usage: python -m train configs/NAME.py" in capsys.readouterr().out
    assert main([]) == 2
    with pytest.raises(SystemExit) as stop:
        main([str(config_file), "--help"])
    assert stop.value.code == 0
    assert "--optim.learning-rate" in capsys.readouterr().out


def test_malloc_settings_restart_the_process_once_with_its_own_arguments():
    program = (
        "import os, sys; from train import environment; "
        "environment.restart_with_malloc_settings(); environment.run_steps_in_main_thread(); "
        "import jax; inline = not jax.config.read('jax_cpu_enable_async_dispatch'); "
        "print(os.getenv('GLIBC_TUNABLES'), sys.argv[1:], inline)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}

    def shown(**more):
        command = [sys.executable, "-c", program, "a b", "--flag"]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True).stdout

    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        pytest.skip("this system gives huge pages to all or to none")
    settings, arguments = shown().split(" ", 1)
    assert settings.startswith("glibc.malloc.hugetlb=1:") and arguments == "['a b', '--flag'] True\n"
    assert shown(GLIBC_TUNABLES="glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0 ['a b', '--flag'] False\n"


@pytest.mark.parametrize(
    ("given", "plugins", "arguments", "level"),
    [
        ({"JAX_PLATFORMS": "cpu"}, ["cuda"], [], "3"),
        ({}, [], [], "3"),
        ({}, ["cuda"], [], None),
        ({}, [], ["--hosts.detect"], None),
        ({"TF_CPP_MIN_LOG_LEVEL": "0"}, [], [], "0"),
    ],
)
def test_what_xla_logs_is_silenced_only_where_there_is_a_cpu_alone(given, plugins, arguments, level, monkeypatch):
    for name in ("JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, given.get(name, ""))  # so that it is put back afterwards
        if name not in given:
            del os.environ[name]
    monkeypatch.setattr(sys, "argv", ["train", "config.py", *arguments])
    monkeypatch.setattr(environment, "entry_points", lambda group: plugins)
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    environment.silence_xla_log_on_cpu()
    assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


def test_xla_flags_of_the_user_are_kept():
    program = (
        "import os; from train.environment import disable_loop_unrolling; disable_loop_unrolling(); "
        "import jax; assert jax.jit(lambda x: x + 1)(1) == 2; print(os.environ['XLA_FLAGS'])"
    )

    def flags(given):
        command = [sys.executable, "-c", program]
        environment = os.environ | {"XLA_FLAGS": given}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    ours = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
    devices = "--xla_force_host_platform_device_count=2"
    assert flags("") == [ours]
    assert flags(devices) == [devices, ours]
    theirs = "--xla_backend_extra_options=xla_cpu_disable_slp_vectorizer"
    assert flags(theirs) == [theirs]


@pytest.mark.parametrize(
    ("former", "new"),
    [
        (["--task.dev-share", "0.1"], "--task.dev-share is now called --task.validation-split"),
        (["--task.also_splits=a"], "--task.also_splits is now called --task.extra-eval-splits"),
        (["--run.micro-batches", "2"], "--run.micro-batches is now called --run.gradient-accumulation-steps"),
        (["--run.no-keep-programs"], "--run.no-keep-programs is now called --run.no-compilation-cache"),
    ],
)
def test_a_former_flag_is_refused_with_the_new_name(config_file, capsys, former, new):
    assert f"error: {new}" in refused(config_file, capsys, *former)


@pytest.mark.parametrize(
    ("current", "former", "message"),
    [
        ("batch_size=8", "micro_batches=8", "micro_batches of Run is now called gradient_accumulation_steps"),
        ("dev=", "also=", "also of SequenceClassification is now called extra_eval"),
    ],
)
def test_a_config_file_with_a_former_name_is_refused_with_the_new_name(config_file, capsys, current, former, message):
    config_file.write_text(config_file.read_text().replace(current, former))
    assert re.search(rf"{config_file}, line \d+: {message}", refused(config_file, capsys))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Run('made', steps=1, bach_size=8)", "Run has no setting 'bach_size'; similar ones: batch_size, evaluation_b"),
        ("dataclasses.replace(Run('made', steps=1), foo=1)", "Run has no setting 'foo'; it has: folder, "),
        ("Run(steps=1)", "Run: missing 1 required positional argument: 'folder'"),
    ],
)
def test_a_config_file_with_an_unknown_setting_names_the_line_and_similar_ones(config_file, capsys, line, message):
    config_file.write_text(f"import dataclasses\n\nfrom train.config import Run\n\n{line}\n")
    assert f"error: {config_file}, line 5: {message}" in refused(config_file, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nlen(1)\n", "line 2: TypeError: object of type 'int' has no len()"),
        ("\nprint(\n", "line 2: SyntaxError: '(' was never closed"),
        ("from train.optim import Optm\n", "line 1: ImportError: cannot import name 'Optm' from 'train.optim'"),
        ("BertConfg.tiny()\n", "line 1: NameError: name 'BertConfg' is not defined"),
        ("from train.optim import Optim\nOptim(warmup=2.0)\n", "line 2: warmup is 2.0; allowed: 0.0 to 1.0"),
        ("\n", "must define `config`, a train.config.Config; it defines none"),
    ],
)
def test_other_mistakes_in_a_config_file_are_told_by_line(config_file, capsys, text, message):
    config_file.write_text(text)
    assert f"error: {config_file}{', ' if message.startswith('line') else ': '}{message}" in refused(
        config_file, capsys
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim=0.1", "Config.optim is 0.1; its type is train.optim.Optim"),
        ("optim=Optim(algorithm='lamb')", "Optim.algorithm is 'lamb'; its type is "),
        ("model=Model(scan='no')", "Model.scan is 'no'; its type is bool"),
        ("optim=Optim(frozen='bert')", "Optim.frozen is 'bert'; its type is tuple[str, ...]"),
        ("optim=Optim(frozen=('a', 1))", "Optim.frozen is ('a', 1); its type is tuple[str, ...]"),
    ],
)
def test_values_of_another_type_in_a_config_file_are_refused(config_file, capsys, setting, message):
    changed = f"config = dataclasses.replace(config, {setting})\n"
    config_file.write_text(f"{CONFIG}\nimport dataclasses\nfrom train.optim import Optim\n{changed}")
    assert f"error: {config_file}: {message}" in refused(config_file, capsys)
    config_file.write_text(f"{CONFIG}\nfrom train.optim import Optim\nOptim(frozen=['a'])\nRun('made', steps=1)\n")
    load_config(config_file)  # a list for a tuple and a str for a path are taken


def test_the_former_name_of_fused_attention_is_refused_with_the_new_one(config_file, capsys):
    for flags in (["--model.attn-implementation", "pallas"], ["--model.attn_implementation=pallas"]):
        answer = refused(config_file, capsys, *flags)
        assert "error: --model.attn-implementation: pallas is now called fused" in answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from train.optim.adam import AdamW", "train.optim.adam is now train.optim.algorithms"),
        ("from train.data.pretraining.batches import Stage", "is now train.data.pretraining.datasets"),
        ("from train.tasks.start import minilm", "train.tasks.start is now train.tasks.task"),
        ("from train.tasks.answer_sets import Rule", "Rule is now train.tasks.answer_sets.MatchingRule"),
        ("import flaxbert; flaxbert.AttentionImplementation.PALLAS", "PALLAS is now FUSED"),
    ],
)
def test_a_config_file_that_imports_a_former_name_is_refused_with_the_new_name(config_file, capsys, line, message):
    config_file.write_text(f"{line}\n{config_file.read_text()}")
    answer = refused(config_file, capsys)
    assert str(config_file) in answer and message in answer


def test_all_former_names_have_a_current_one(config_file):
    names = {
        f"{name}.{field}"
        for name, settings in (("run", Run), ("task", SequenceClassification))
        for field in settings.__dataclass_fields__
    }
    assert set(RENAMED_SETTINGS.values()) <= names and not set(RENAMED_SETTINGS) & names


def test_a_record_with_former_names_can_be_resumed(tmp_path):
    task = SequenceClassification("train.tsv", validation_split=0.1)
    model = Model(attn_implementation=AttentionImplementation.FUSED)
    config = Config(task=task, run=Run(folder=tmp_path, steps=1), model=model)
    stored = json.loads(config.to_json())
    stored["model"]["attn_implementation"] = "pallas"
    for former, name in RENAMED_SETTINGS.items():
        section, _, field = name.partition(".")
        stored[section][former.partition(".")[2]] = stored[section].pop(field)
    assert "dev_share" in stored["task"] and "micro_batches" in stored["run"]
    assert config.differences(json.dumps(stored)) == []
    stored["task"]["dev_share"] = 0.2
    assert config.differences(json.dumps(stored)) == ["task.validation_split: 0.2 -> 0.1"]


def test_a_record_without_later_settings_had_their_defaults(tmp_path):
    config = Config(task=QuestionAnswering("train.json", head="pointer"), run=Run(folder=tmp_path, steps=1))
    stored = json.loads(config.to_json())
    del stored["distillation"], stored["run"]["seeds"], stored["model"]["sizes"]["chunk_size_feed_forward"]
    assert config.differences(json.dumps(stored)) == []
    del stored["task"]["head"]
    assert config.differences(json.dumps(stored)) == ["task.head: linear -> pointer"]


def test_without_the_packages_of_training_the_extra_is_named(tmp_path):
    (tmp_path / "optax.py").write_text('raise ModuleNotFoundError("No module named \'optax\'", name="optax")\n')
    ended = subprocess.run(
        [sys.executable, "-m", "train", "configs/quickstart.py"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: optax is not installed; training needs the extra [train]: pip install -e '.[train]'\n"
    )
