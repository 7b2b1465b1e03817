"""`flaxbert predict`: sources of texts, output, and exit codes."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import flaxbert
from flaxbert import cli
from flaxbert.cli.printed_text import json_text
from flaxbert.pipelines import (
    Aggregation,
    EntityRecognitionPipeline,
    FillMaskPipeline,
    Pooling,
    QuestionAnsweringPipeline,
    SentenceEmbeddingPipeline,
    TextClassificationPipeline,
    TextGenerationPipeline,
)
from tests.flaxbert.reference_folders import saved

PAIRED = "One.\tTwo.\nThree.\tFour, five.\n"


@pytest.fixture(scope="module")
def folders(data_dir, tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("models"), data_dir / "tokenizers" / "bert-base-uncased"
    names = {
        "fill-mask": "BertForMaskedLM",
        "classify": "BertForSequenceClassification",
        "next-sentence": "BertForNextSentencePrediction",
        "choose": "BertForMultipleChoice",
        "tag": "BertForTokenClassification",
        "answer": "BertForQuestionAnswering",
        "embed": "BertModel",
        "generate": "BertLMHeadModel",
    }
    return {
        task: saved(name, root / task, tokenizer, is_decoder=name == "BertLMHeadModel") for task, name in names.items()
    }


@pytest.fixture
def predict(folders, capsys, monkeypatch):
    def run(task, *arguments, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            code = cli.main(["predict", task, "--model", str(folders[task]), *map(str, arguments)])
        except SystemExit as stop:  # tyro's, of wrong flags
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_generated_texts(predict, folders):
    flags = ("--max-new-tokens", 3, "--num-beams", 2, "--num-return-sequences", 2, "--early-stopping", "never")
    settings = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2, "early_stopping": "never"}
    generate = TextGenerationPipeline.from_pretrained(folders["generate"], settings=settings)
    (wanted,) = generate(["Paris is"])
    code, out, err = predict("generate", "Paris is", *flags, "--json")
    assert (code, err) == (0, "")
    assert [found["text"] for found in json.loads(out)["continuations"]] == [c.text for c in wanted.continuations]
    code, out, _ = predict("generate", "Paris is", *flags)
    assert (
        code == 0
        and out.splitlines()[1] == f"  {wanted.continuations[0].score:9.4f}  Paris is{wanted.continuations[0].text}"
    )


def test_generated_texts_are_streamed(predict):
    flags = ("--max-new-tokens", 3, "--do-sample", "--top-k", 4, "--seed", 3)
    code, out, err = predict("generate", "Paris is", "A text", *flags, "--stream")
    assert (code, err) == (0, "") and [line[:6] for line in out.splitlines()] == ["Paris ", "A text"]
    code, _, err = predict("generate", "Paris is", "--stream", "--json")
    assert code == 2 and "--stream prints plain text; give it without --json and --output" in err
    code, _, err = predict("generate", "Paris is", "--temperature", 2)
    assert code == 2 and "--temperature is 2.0 without sampling; give --do-sample, or leave it out" in err
    code, _, err = predict("generate", "Paris is", "--seed", 0)
    assert code == 2 and "--seed is 0 without sampling; give --do-sample" in err
    code, _, err = predict("fill-mask", "a [MASK]", "--num-beams", 2)
    assert code == 2 and "fill-mask has no --num-beams" in err


def test_layers_and_tokens_left_out(predict, folders, tmp_path):
    classify = TextClassificationPipeline.from_pretrained(folders["classify"], batch_size=1)  # of one layer
    text = "A text with more words than six."
    adaptive = {"length_config": [1], "always_keep_cls_token": False}
    (wanted,) = dataclasses.replace(classify, **adaptive)([text])
    flags = ("--length-config", 1, "--always-keep-cls-token", False)
    code, out, err = predict("classify", text, *flags, "--json")
    assert (code, err) == (0, "")
    found = {label["name"]: label["score"] for label in json.loads(out)["labels"]}
    assert found == pytest.approx({label.name: label.score for label in wanted.labels}, abs=1e-6)
    assert found != pytest.approx({label.name: label.score for label in classify([text])[0].labels}, abs=1e-4)
    front = tmp_path / "front.json"
    front.write_text(json.dumps({"points": {"50%": {"layer_config": None, **adaptive}}}))
    code, out, _ = predict("classify", text, "--point", f"50%@{front}", "--json")
    assert code == 0 and {label["name"]: label["score"] for label in json.loads(out)["labels"]} == found
    front.write_text(json.dumps({"length": 1, "points": {"50%": {"layer_config": None, **adaptive}}}))
    code, out, _ = predict("classify", text, "--point", f"50%@{front}", "--json")  # all tokens of rows in the search
    assert {label["name"]: label["score"] for label in json.loads(out)["labels"]} != found
    code, _, err = predict("classify", text, "--point", f"50%@{front.parent}")
    assert code == 2 and "is a directory; give the front.json that `python -m train.search` wrote" in err
    code, _, err = predict("classify", text, "--point", f"40%@{front}")
    assert code == 2 and "front.json has no point '40%'; it has 50%" in err
    code, _, err = predict("classify", text, "--point", f"50%@{front}", "--layer-config", 0)
    assert code == 2 and "has all lengths and layers; leave --layer-config out" in err
    front.write_text('{"points": {"50%": [1]}}')
    code, _, err = predict("classify", text, "--point", f"50%@{front}")
    assert code == 2 and "front.json: not the front.json of a search: its points cannot be read; give the front" in err
    front.write_text("")
    code, _, err = predict("classify", text, "--point", f"50%@{front}")
    assert code == 2 and "front.json: not the front.json of a search: not a JSON file (Expecting value" in err
    front.unlink()
    code, _, err = predict("classify", text, "--point", f"50%@{front}")
    assert (
        code == 2
        and "front.json: no such file or directory; give the front.json that `python -m train.search` wrote" in err
    )
    code, _, err = predict("classify", text, "--length-config", 6, 7)
    assert code == 2 and "--length-config has 2 numbers; the model has 1 layers: give one number for each" in err
    code, _, err = predict("generate", text, "--layer-config", 0)
    assert code == 2 and "--layer-config is given to a decoder" in err


def test_fill_mask_of_arguments(predict, folders):
    text = "The capital of [MASK] is [MASK]."
    (wanted,) = FillMaskPipeline.from_pretrained(folders["fill-mask"], top_k=2)([text])
    code, out, err = predict("fill-mask", "--top-k", 2, "--", text)
    lines = out.splitlines()
    assert (code, err) == (0, "") and lines[0] == text and len(lines) == 5
    assert lines[4].split(maxsplit=2) == [
        f"{wanted.masks[1][1].probability:.4f}",
        wanted.masks[1][1].token,
        wanted.masks[1][1].text,
    ]
    code, out, _ = predict("fill-mask", text, "--json", "--targets", "paris", "london")
    found = json.loads(out)
    assert code == 0 and found["input"] == text and len(found["masks"]) == 2
    assert {filling["token"] for filling in found["masks"][0]} == {"paris", "london"}


def test_classify_standard_input_and_a_table_alike(predict, tmp_path):
    code, out, _ = predict("classify", "--json", stdin="a text\nOne.\tTwo.\n")
    single, pair = map(json.loads, out.splitlines())
    assert code == 0 and single["input"] == "a text" and pair["input"] == ["One.", "Two."]
    assert [label["name"] for label in pair["labels"]] in (["LABEL_0", "LABEL_1"], ["LABEL_1", "LABEL_0"])
    (tmp_path / "a.tsv").write_text("label\tsentence1\tsentence2\n0\tOne.\tTwo.\n")
    code, out, err = predict("classify", "--file", tmp_path / "a.tsv", "--json", "--top-k", 1)
    (row,) = map(json.loads, out.splitlines())
    assert (code, err) == (0, "") and row["labels"] == [
        {"name": pair["labels"][0]["name"], "score": pytest.approx(pair["labels"][0]["score"], abs=1e-6)}
    ]


def test_pairs_and_choices_are_arguments_or_lines_with_tabs(predict):
    code, out, _ = predict("next-sentence", "One.", "Two.", "--json")
    alone = json.loads(out)
    assert code == 0 and alone["input"] == ["One.", "Two."]
    lines = predict("next-sentence", stdin=PAIRED)[1].splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{alone['probability']:.4f}  ") and "One. | Two." in lines[0]
    lines = predict("classify", "One.", "Two.", "--json")[1].splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["One.", "Two."]  # texts of their own
    code, out, _ = predict("choose", "Why?", "This.", "That.", "Neither.", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["probabilities"]) == 3
    assert found["best"] == int(np.argmax(found["probabilities"]))
    lines = predict("choose", stdin="Why?\tThis.\tThat.\tNeither.\nOr?\tYes.\n")[1].splitlines()
    assert [line[:1] for line in lines] == ["W", " ", " ", " ", "O", " "] and lines[1 + found["best"]][9] == "*"


def test_tag_reads_lines_of_any_length(predict, folders, tmp_path):
    texts = ["Ann met the antidisestablishmentarians of Gelsenkirchen.", "word and another " * 20]
    tag = EntityRecognitionPipeline.from_pretrained(folders["tag"], aggregation=Aggregation.SIMPLE)
    wanted = [[dataclasses.asdict(entity) for entity in answer.entities] for answer in tag(texts)]
    # Parts of words, which no other aggregation has.
    assert any(texts[0][entity["end"] : entity["end"] + 1].isalpha() for entity in wanted[0])
    (tmp_path / "a.txt").write_text("\n".join(texts))
    flags = ("--file", tmp_path / "a.txt", "--aggregation", "simple")
    code, out, err = predict("tag", *flags, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "") and [row["input"] for row in found] == texts
    for row, entities in zip(found, wanted, strict=True):
        assert row["entities"] == [{**e, "score": pytest.approx(e["score"], abs=1e-6)} for e in entities]
    lines = predict("tag", *flags)[1].splitlines()
    first = wanted[0][0]
    assert lines[1] == f"  {first['score']:.4f}  {first['type']:8} {texts[0][first['start'] : first['end']]}"
    assert len(lines) == sum(1 + len(entities) for entities in wanted) and wanted[1][-1]["end"] > 200


def test_answer_takes_arguments_lines_and_tables_alike(predict, folders, tmp_path):
    question, context = "Where is it?", "It is here, or there. " * 6
    answer = QuestionAnsweringPipeline.from_pretrained(folders["answer"], top_k=3)
    (wanted,) = answer([(question, context)])
    code, out, err = predict("answer", question, context, "--json", "--top-k", 3)
    found = json.loads(out)
    assert (code, err) == (0, "") and found["input"] == [question, context] and len(found["candidates"]) == 3
    assert (found["text"], found["start"], found["end"]) == (wanted.text, wanted.start, wanted.end)
    assert found["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    lines = predict("answer", "--top-k", 3, stdin=f"{question}\t{context}\n")[1].splitlines()
    assert lines[:2] == [question, f"  {wanted.probability:.4f} * {wanted.text}"] and len(lines) == 4
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "question": question, "context": context}))
    flags = ("--file", tmp_path / "a.jsonl", "--top-k", 1, "--null-threshold")
    for threshold, text in ((wanted.null_odds - 1, "(no answer)"), (wanted.null_odds + 1, wanted.text)):
        lines = predict("answer", *flags, threshold)[1].splitlines()
        assert lines[1][8:] == f" * {text}"


def test_flags_of_windows_and_answers_reach_the_pipeline(predict, folders):
    """That each flag changes what is found shows that it arrives."""
    question, context = "Where is it, and who has seen it there?", "It is here, or there; nobody knows but Ann. " * 4
    flags = {"step": 4, "max_answer": 6, "max_query": 3, "n_best": 9, "top_k": 9}
    answer = QuestionAnsweringPipeline.from_pretrained(folders["answer"], **flags)
    (wanted,) = answer([(question, context)])
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = json.loads(predict("answer", question, context, "--json", *arguments)[1])
    assert [c["text"] for c in found["candidates"]] == [candidate.text for candidate in wanted.candidates]
    probabilities = [c["probability"] for c in found["candidates"]]
    assert probabilities == pytest.approx([candidate.probability for candidate in wanted.candidates], abs=1e-5)
    for name, other in {"step": None, "max_answer": 2, "max_query": 9, "n_best": 20}.items():
        (changed,) = dataclasses.replace(answer, **{name: other})([(question, context)])
        assert changed.candidates != wanted.candidates
    texts = ["word and another " * 20]
    entities = {n: json.loads(predict("tag", *texts, "--json", "--overlap", n)[1])["entities"] for n in (0, 15)}
    tag = EntityRecognitionPipeline.from_pretrained(folders["tag"], overlap=15)
    assert entities[15] == [pytest.approx(dataclasses.asdict(entity), abs=1e-5) for entity in tag(texts)[0].entities]
    assert entities[15] != entities[0]


def test_vectors_are_written_as_one_array(predict, folders, tmp_path):
    texts = [f"text number {i}" for i in range(11)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    flags = ("--file", tmp_path / "a.txt", "--normalize", "--pooling", "cls", "--batch-size", "4")
    code, out, err = predict("embed", *flags, "--output", tmp_path / "a.npy")
    assert (code, out, err) == (0, f"{tmp_path / 'a.npy'}: 11 answers\n", "")
    embed = SentenceEmbeddingPipeline.from_pretrained(folders["embed"], normalize=True, batch_size=4)
    assert not np.allclose(embed(texts), np.load(tmp_path / "a.npy"))
    wanted = dataclasses.replace(embed, pooling=Pooling.CLS)(texts)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), wanted, atol=1e-6)
    predict("embed", *flags, "--output", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["input"] for row in rows] == texts
    np.testing.assert_allclose([row["vector"] for row in rows], wanted, atol=1e-6)


def test_no_output_if_an_input_is_invalid(predict, tmp_path):
    (tmp_path / "a.txt").write_text("a [MASK]\nnone\n")
    code, out, err = predict("fill-mask", "--file", tmp_path / "a.txt", "--output", tmp_path / "out.jsonl")
    assert (
        (code, out) == (2, "") and "1 of 2 rows" in err and "a.txt:2: no mask token ([MASK] or <mask>) in 'none'" in err
    )
    (tmp_path / "b.txt").write_text("a [MASK]\n" + "word " * 30 + "[MASK]\n")  # seen only when it is cut
    code, _, err = predict("fill-mask", "--file", tmp_path / "b.txt", "--output", tmp_path / "out.jsonl")
    assert code == 2 and "texts[1]: a [MASK] lies beyond" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    "task, arguments, said",
    [
        ("embed", ["a", "--top-k", "2"], "embed has no --top-k; its own flags: --pooling, --normalize"),
        ("choose", ["a", "b", "--targets", "x"], "choose has no --targets; its own flags: none"),
        ("embed", ["a", "--file", "x.txt"], "1 texts and the file x.txt: give one of them"),
        ("tag", ["a", "--null-threshold", "0"], "tag has no --null-threshold; its own flags: --aggregation"),
        (
            "answer",
            ["a", "--normalize"],
            "answer has no --normalize; its own flags: --top-k, --null-threshold, --max-answer",
        ),
        ("answer", ["Why?"], "1 texts; expected a question and its context"),
        ("embed", ["a", "--columns", "x"], "columns are those of a file"),
        ("classify", ["a", "--output", "x.npy"], "only embed writes .npy"),
        ("embed", ["--file", "none.txt"], "none.txt: no such file"),
        ("next-sentence", ["a"], "1 texts; expected a pair of texts"),
        ("embed", [" "], "argument:1: empty"),
        ("embed", ["a", "--max-length", "25"], "--max-length is 25; allowed: 5 to 24"),
    ],
)
def test_errors_have_exit_code_2_and_one_line(predict, task, arguments, said):
    code, out, err = predict(task, *arguments)
    assert (code, out) == (2, "") and said in err and err.startswith("error: ")


def test_a_decoder_comes_from_convert(folders, tmp_path, capsys, caplog):
    masked, decoder = folders["fill-mask"], str(tmp_path / "decoder")
    assert cli.main(["predict", "generate", "--model", str(masked), "a"]) == 2
    err = capsys.readouterr().err
    assert f"generate needs a BertLMHeadModel. Write one and train it: flaxbert convert {masked} NEW --head" in err
    assert cli.main(["convert", str(masked), decoder, "--head", "BertLMHeadModel"]) == 0
    assert "is_decoder is set to true: attention becomes causal" in caplog.text
    assert cli.main(["predict", "generate", "--model", decoder, "a", "--max-new-tokens", "1"]) == 0
    assert cli.main(["convert", decoder, str(tmp_path / "masked"), "--head", "BertForMaskedLM"]) == 0
    assert "is_decoder stays true: the attention of the BertForMaskedLM is causal" in caplog.text
    config = flaxbert.BertConfig.from_pretrained(tmp_path / "masked").replace(is_decoder=False)
    flaxbert.save_pretrained(decoder, *flaxbert.BertLMHeadModel.from_pretrained(decoder, config=config))
    assert cli.main(["predict", "generate", "--model", decoder, "a"]) == 2
    assert "train it: flaxbert convert FOLDER NEW --head BertLMHeadModel" in capsys.readouterr().err


def test_a_model_with_another_head(folders, capsys):
    assert cli.main(["predict", "classify", "--model", str(folders["embed"]), "a"]) == 2
    assert "holds a BertModel, good for embed; classify needs" in capsys.readouterr().err
    assert cli.main(["predict", "embed", "--model", "./nowhere", "a"]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_control_characters_of_texts_are_escaped(predict):
    out = predict("embed", "a\x1b[2Jb")[1]
    assert out.startswith("[") and out.endswith(", ...]  a\\x1b[2Jb\n")


def test_json_has_the_characters_of_the_texts_and_only_numbers(predict, tmp_path):
    texts = ["Zwölf Boxkämpfer 東京 😀"]
    out = predict("embed", *texts, "--json")[1]
    assert texts[0] in out and json.loads(out)["input"] == texts[0]
    predict("embed", *texts, "--output", tmp_path / "a.jsonl")
    assert texts[0] in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    values = {"score": float("nan"), "scores": [1.5, float("-inf")], "label": "é"}
    assert json_text(values) == '{"score": null, "scores": [1.5, "-Infinity"], "label": "é"}'
    assert json_text({"label": "é東"}, encoding="latin-1") == '{"label": "\\u00e9\\u6771"}'
    assert json_text({"label": "é"}, encoding="latin-1") == '{"label": "é"}'
    assert json_text({"label": "\ud800"}) == '{"label": "\\ud800"}'


def test_blank_last_lines_and_a_byte_order_mark_of_standard_input(predict, monkeypatch):
    content = "\ufeffone\r\ntwo\n \n\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    code, out, err = predict("embed", "--json")
    assert (code, err) == (0, "") and [json.loads(line)["input"] for line in out.splitlines()] == ["one", "two"]


def test_home_is_expanded_in_every_path(predict, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a text\n")
    (tmp_path / "model").symlink_to(folders["embed"])
    code, _, err = predict("embed", "--file=~/a.txt", "--output=~/a.npy", "--model=~/model")
    assert (code, err) == (0, "") and np.load(tmp_path / "a.npy").shape == (1, 24)
    assert cli.main(["convert", "~/model", "~/out"]) == cli.main(["inspect", "~/out"]) == 0
    assert cli.main(["verify", "~/model", "~/out"]) == 0
    assert cli.main(["average", "~/model", "~/out", "--output", "~/mean"]) == 0
    assert (tmp_path / "mean" / "config.json").is_file()


@pytest.mark.parametrize(
    "output, said",
    [
        ("none/a.jsonl", "the folder .*none does not exist; give --output a file in an existing folder"),
        (".", "is a folder; give --output a file"),
        ("a.txt", "a.txt: the file of the texts; give --output another one"),
        ("-", "output is '-'; leave --output out, and the results are printed"),
        ("a.csv", "a.csv: results are written as JSON lines, or as .npy by embed; name a .jsonl"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_at_once(predict, tmp_path, output, said, monkeypatch):
    monkeypatch.setattr(FillMaskPipeline, "from_pretrained", None)  # is not called
    (tmp_path / "a.txt").write_text("a [MASK]\n")
    code, out, err = predict("fill-mask", "--file", tmp_path / "a.txt", "--output", tmp_path / output)
    assert (code, out) == (2, "") and re.search(said, err) and (tmp_path / "a.txt").read_text() == "a [MASK]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["inspect", "FOLDER"], ["embed"]])
def test_no_command_fails_if_its_output_is_closed(folders, monkeypatch, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    if arguments == ["embed"]:
        arguments = ["predict", "embed", "--model", "FOLDER", "a text"]
    folder = str(folders["embed"])
    assert cli.main([folder if argument == "FOLDER" else argument for argument in arguments]) == 0
    sys.stdout.close()


def test_a_closed_pipe_is_no_error(folders):
    arguments = [sys.executable, "-m", "flaxbert", "predict", "embed", "--json", "--model", str(folders["embed"])]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    process.stdout.close()
    _, err = process.communicate("a text\n" * 40)
    assert (process.returncode, err) == (0, "")


def test_a_zip_from_google_and_the_encoder_in_it(data_dir, tmp_path, capsys):
    source = data_dir / "checkpoints" / "tiny_tf1"
    with zipfile.ZipFile(tmp_path / "uncased.zip", "w") as archive:
        for file in source.iterdir():
            archive.write(file, f"uncased_L-2/{file.name}")
    model = ["--model", str(tmp_path / "uncased.zip")]
    for task, texts in (("fill-mask", ["a [MASK]"]), ("next-sentence", ["a", "b"]), ("embed", ["a"])):
        for folder in (model, ["--model", str(source)]):
            assert cli.main(["predict", task, *folder, *texts]) == 0, task
        zipped, plain = np.array_split(capsys.readouterr().out.splitlines(), 2)
        assert zipped.tolist() == plain.tolist() != []
    assert cli.main(["predict", "classify", *model, "a"]) == 2
    err = capsys.readouterr().err
    assert f"error: {tmp_path / 'uncased.zip'}: holds a BertForPreTraining" in err and "/flaxbert-" not in err


def test_a_weights_file_with_its_config_and_tokenizer_beside_it(folders, capsys):
    for task, texts in (("classify", ["a text"]), ("embed", ["a text"])):
        for path in (folders[task], folders[task] / "model.safetensors"):
            assert cli.main(["predict", task, "--model", str(path), *texts]) == 0
        of_folder, of_file = np.array_split(capsys.readouterr().out.splitlines(), 2)
        assert of_file.tolist() == of_folder.tolist() != []
