"""Makes tests/flaxbert/fixtures/flax: tiny models that transformers' own Flax classes saved, and what they compute.

Those classes are gone since transformers 5, so this runs in an environment of its own, with Python 3.11:

    pip install transformers==4.57.6 flax==0.8.3 jax==0.4.26 jaxlib==0.4.26 numpy==1.26.4 scipy==1.12.0
    python tests/flaxbert/make_flax_fixtures.py
"""

import shutil
from pathlib import Path

import jax
import numpy as np
from transformers import (
    BertConfig,
    FlaxBertForMaskedLM,
    FlaxBertForPreTraining,
    FlaxBertForSequenceClassification,
    FlaxBertModel,
)

FOLDER = Path(__file__).with_name("fixtures") / "flax"
SIZES = {
    "vocab_size": 24,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "num_labels": 3,
}
MODELS = [
    ("pretraining", FlaxBertForPreTraining, {}, {}),
    ("masked_lm_untied", FlaxBertForMaskedLM, {"tie_word_embeddings": False}, {}),
    ("classification_sharded", FlaxBertForSequenceClassification, {}, {"max_shard_size": "4KB"}),
    ("model_bfloat16", FlaxBertModel, {}, {}),
]


def inputs(rng):
    mask = np.ones((2, 7), np.int32)
    mask[1, 5:] = 0
    return {
        "input_ids": rng.integers(0, SIZES["vocab_size"], (2, 7), np.int32),
        "token_type_ids": rng.integers(0, 2, (2, 7), np.int32),
        "attention_mask": mask,
    }


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    rng = np.random.default_rng(0)
    for name, kind, config, saving in MODELS:
        model = kind(BertConfig(**SIZES, **config), seed=0)
        # Biases are drawn as 0 and scales as 1, which would hide that one is taken for another.
        model.params = jax.tree_util.tree_map(
            lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), model.params
        )
        if name.endswith("bfloat16"):
            model.params = model.to_bf16(model.params)
        given = inputs(rng)
        outputs = {f"output.{key}": np.asarray(value, np.float32) for key, value in model(**given).items()}
        model.save_pretrained(FOLDER / name, **saving)
        np.savez(FOLDER / name / "expected.npz", **given, **outputs)


if __name__ == "__main__":
    main()
