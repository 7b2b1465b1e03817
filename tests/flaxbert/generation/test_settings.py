"""Settings of generation: contradictions are refused when they are built, files are read as transformers reads them."""

import json

import pytest
import transformers

import flaxbert
from flaxbert.generation import GenerationSettings

CONFIG = flaxbert.BertConfig.tiny(vocab_size=50, max_position_embeddings=32)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"temperature": 0.5}, "temperature is 0.5 without sampling; give do_sample=True"),
        ({"top_k": 5}, "top_k is 5 without sampling"),
        ({"top_p": 0.5}, "top_p is 0.5 without sampling"),
        ({"length_penalty": 2}, "length_penalty is 2.0 without beams; give num_beams above 1"),
        ({"early_stopping": True}, "early_stopping is True without beams"),
        ({"early_stopping": "always", "num_beams": 2}, "early_stopping is 'always'; allowed: True, False, 'never'"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2 with num_beams 1; raise num_beams, or give do_sample"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences is 3 with num_beams 2; raise num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, at least 1"),
        ({"max_new_tokens": 5, "max_length": 9}, "max_new_tokens and max_length are both given"),
        ({"min_new_tokens": 5, "min_length": 9}, "min_new_tokens and min_length are both given"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0.0; it must be above 0; do_sample=False is greedy"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0.0; it must be above 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan; it must be a number"),
        ({"do_sample": 1}, "do_sample is 1; it must be True or False"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"eos_token_id": -1}, "eos_token_id is -1; it must hold token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids holds an empty sequence"),
        ({"bad_words_ids": [5]}, "bad_words_ids is .5.; it must be a list of lists"),
        ({"forced_eos_token_id": 3, "suppress_tokens": [3]}, "forced_eos_token_id .3. is among suppress_tokens"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**values)


@pytest.mark.parametrize(
    "values, prompt, longest, message",
    [
        ({"max_length": 5}, 5, 5, "max_length is 5 and the prompt has 5 tokens"),
        ({"max_new_tokens": 30}, 9, 4, "need 33 positions; the model has 32: give max_new_tokens of at most 29"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, 5, 5, "at least 4 new tokens are asked for, and at most 3"),
        ({"max_new_tokens": 3, "min_length": 9}, 5, 5, "at least 4 new tokens are asked for, and at most 3"),
        ({"eos_token_id": 50}, 5, 5, "eos_token_id holds 50; allowed: 0 to 49"),
        ({"bad_words_ids": [[1, 77]]}, 5, 5, "bad_words_ids holds 77"),
        ({"forced_bos_token_id": 1}, 2, 2, "forced_bos_token_id is the token after a prompt of one token"),
    ],
)
def test_settings_that_do_not_fit_prompts_are_refused(values, prompt, longest, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**values).resolve(CONFIG, prompt_length=prompt, longest_prompt=longest)


def test_lengths_are_resolved_as_in_the_reference():
    def lengths(prompt, **values):
        found = GenerationSettings(**values).resolve(CONFIG, prompt_length=prompt, longest_prompt=prompt)
        return found.max_new_tokens, found.min_new_tokens, found.pad_token_id

    assert lengths(5) == (20, 0, 0)
    assert lengths(30) == (2, 0, 0)  # up to the last position
    assert lengths(5, max_length=9, min_length=7) == (4, 2, 0)
    assert lengths(5, max_new_tokens=9, min_new_tokens=7, pad_token_id=3) == (9, 7, 3)


def test_a_file_is_read_and_changed(tmp_path):
    written = transformers.GenerationConfig(
        max_length=30, do_sample=True, temperature=0.5, top_p=0.9, eos_token_id=[3, 4], bad_words_ids=[[1, 2]]
    )
    written.save_pretrained(tmp_path)
    read = GenerationSettings.from_pretrained(tmp_path)
    expected = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "eos_token_id": (3, 4), "bad_words_ids": [[1, 2]]}
    assert read == GenerationSettings(max_length=30, **expected)
    assert GenerationSettings.from_pretrained(tmp_path, max_new_tokens=3) == GenerationSettings(
        max_new_tokens=3, **expected
    )
    # Without sampling the file's temperature does not count; one that is given is refused.
    greedy = GenerationSettings.from_pretrained(tmp_path, do_sample=False)
    assert greedy == GenerationSettings(max_length=30, eos_token_id=(3, 4), bad_words_ids=[[1, 2]])
    with pytest.raises(ValueError, match="temperature"):
        GenerationSettings.from_pretrained(tmp_path, do_sample=False, temperature=0.7)


def test_config_json_is_read_where_there_is_no_other_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "hidden_size": 24, "typical_p": 1.0}))
    assert GenerationSettings.from_pretrained(tmp_path) == GenerationSettings(eos_token_id=7)


def test_a_file_with_what_is_not_built_is_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"typical_p": 0.5}))
    with pytest.raises(ValueError, match="sets typical_p to 0.5, which is not built; delete that key"):
        GenerationSettings.from_pretrained(tmp_path)


def test_keys_that_no_setting_has_are_named_once(tmp_path, caplog):
    transformers.GenerationConfig().save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    values = json.loads(file.read_text()) | transformers.GenerationConfig().to_dict()
    file.write_text(json.dumps(values))
    assert GenerationSettings.from_pretrained(tmp_path) == GenerationSettings()
    assert not caplog.records
    file.write_text(json.dumps(values | {"temprature": 2.0, "beams": 4}))
    GenerationSettings.from_pretrained(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: keys that no setting of generation has are not read: ['beams', 'temprature']"
    ]


def test_a_folder_without_settings_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no generation_config.json and no config.json"):
        GenerationSettings.from_pretrained(tmp_path)
