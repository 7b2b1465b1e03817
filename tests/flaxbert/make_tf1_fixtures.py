"""Writes tests/flaxbert/fixtures/tf1: checkpoints and outputs of TensorFlow itself, for test_tf1_heads.py.

Tiny BERTs with the variables and the arithmetic of google-research/bert, as graphs of TensorFlow 1. Each folder holds
a checkpoint (the newer of TensorFlow 1's two formats), bert_config.json, vocab.txt, and expected.json: what went in,
what TensorFlow computed from it in float32, and which variables are weights and which are not. Two hold a checkpoint
only: that of "encoder" in two data files, and with a variable in two slices.

TensorFlow is no dependency of the tests; this script needs it. Made with TensorFlow 2.21.0 (CPU) by

    python tests/flaxbert/make_tf1_fixtures.py
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
FOLDER = Path(__file__).parent / "fixtures" / "tf1"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "cat", "sat", "on", "a", "mat", "dog", "##s", "ran", ".", "?"),
]
WIDTH, INNER, LAYERS, HEADS, POSITIONS, LABELS = 8, 12, 2, 2, 10, 3
CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "directionality": "bidi",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "pooler_fc_size": WIDTH,
    "pooler_num_attention_heads": HEADS,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": WIDTH,
    "pooler_type": "first_token_transform",
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
}
INPUTS = {
    "input_ids": [[2, 5, 6, 7, 3, 9, 10], [2, 12, 13, 15, 3, 0, 0]],
    "attention_mask": [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]],
    "token_type_ids": [[0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 0, 0]],
}


class Bert:
    """The graph, whose variables are drawn as they are asked for; large, so that every one of them shows."""

    def __init__(self, partitioned=False):
        self.rng = np.random.default_rng(7)
        self.partitioned = partitioned
        self.words = self.variable("bert/embeddings/word_embeddings", len(VOCABULARY), WIDTH)
        self.states, self.pooled = self.encode()

    def variable(self, name, *shape, mean=0.0, trainable=True):
        value = (mean + 0.5 * self.rng.standard_normal(shape)).astype(np.float32)
        slices = v1.fixed_size_partitioner(2) if self.partitioned and name.endswith("word_embeddings") else None
        return v1.get_variable(
            name,
            shape,
            initializer=lambda shape, dtype, partition_info=None: value[self.part(partition_info, shape)],
            partitioner=slices,
            trainable=trainable,
        )

    def part(self, info, shape):
        """Which rows and columns of a value a slice of a partitioned variable begins with."""
        offset = [0] * len(shape) if info is None else info.var_offset
        return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))

    def dense(self, x, outputs, scope):
        kernel = self.variable(f"{scope}/kernel", x.shape[-1], outputs)
        return tf.tensordot(x, kernel, 1) + self.variable(f"{scope}/bias", outputs)

    def norm(self, x, scope):
        beta = self.variable(f"{scope}/LayerNorm/beta", WIDTH)
        gamma = self.variable(f"{scope}/LayerNorm/gamma", WIDTH, mean=1.0)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)

    def table(self, x, outputs, scope):
        """The last layer of a head: its matrix lies [outputs, inputs], unlike a kernel."""
        weights = self.variable(f"{scope}output_weights", outputs, WIDTH)
        return tf.tensordot(x, tf.transpose(weights), 1) + self.variable(f"{scope}output_bias", outputs)

    def encode(self):
        ids, types = tf.constant(INPUTS["input_ids"]), tf.constant(INPUTS["token_type_ids"])
        x = tf.gather(tf.convert_to_tensor(self.words), ids)
        x += tf.gather(self.variable("bert/embeddings/token_type_embeddings", 2, WIDTH), types)
        x += self.variable("bert/embeddings/position_embeddings", POSITIONS, WIDTH)[: ids.shape[1]]
        states = [self.norm(x, "bert/embeddings")]
        for layer in range(LAYERS):
            states.append(self.layer(states[-1], f"bert/encoder/layer_{layer}"))
        return states, tf.tanh(self.dense(states[-1][:, 0], WIDTH, "bert/pooler/dense"))

    def layer(self, x, scope):
        def heads(name):
            y = self.dense(x, WIDTH, f"{scope}/attention/self/{name}")
            return tf.transpose(tf.reshape(y, [*x.shape[:2], HEADS, WIDTH // HEADS]), [0, 2, 1, 3])

        scores = tf.matmul(heads("query"), heads("key"), transpose_b=True) / math.sqrt(WIDTH // HEADS)
        mask = tf.constant(INPUTS["attention_mask"], tf.float32)[:, None, None]
        context = tf.matmul(tf.nn.softmax(scores + (1.0 - mask) * -10000.0), heads("value"))
        context = tf.reshape(tf.transpose(context, [0, 2, 1, 3]), x.shape)
        attended = self.dense(context, WIDTH, f"{scope}/attention/output/dense")
        x = self.norm(attended + x, f"{scope}/attention/output")
        inner = gelu(self.dense(x, INNER, f"{scope}/intermediate/dense"))
        return self.norm(self.dense(inner, WIDTH, f"{scope}/output/dense") + x, f"{scope}/output")


def gelu(x):
    return x * 0.5 * (1.0 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * tf.pow(x, 3))))


# -- what is on top of it; each returns the outputs beside the states ------------------------------------------


def encoder(bert):
    return {"pooler_output": bert.pooled}


def pretraining(bert):
    """As run_pretraining.py, but at every position."""
    x = gelu(bert.dense(bert.states[-1], WIDTH, "cls/predictions/transform/dense"))
    x = bert.norm(x, "cls/predictions/transform")
    words = tf.tensordot(x, tf.transpose(bert.words), 1)
    return {
        "prediction_logits": words + bert.variable("cls/predictions/output_bias", len(VOCABULARY)),
        "seq_relationship_logits": bert.table(bert.pooled, 2, "cls/seq_relationship/"),
    }


def classifier(bert):
    """As run_classifier.py."""
    return {"logits": bert.table(bert.pooled, LABELS, "")}


def squad(bert):
    """As run_squad.py: the pooler is in the checkpoint, though nothing follows from it."""
    start, end = tf.unstack(bert.table(bert.states[-1], 2, "cls/squad/"), axis=-1)
    return {"start_logits": start, "end_logits": end}


# -- what an optimizer leaves beside the weights ---------------------------------------------------------------


def google_slots(bert, outputs):
    """The names of the Adam of google-research/bert: only what has a gradient has them."""
    variables = v1.trainable_variables()
    gradients = tf.gradients(sum(tf.reduce_sum(output) for output in outputs.values()), variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None:
            for slot in ("adam_m", "adam_v"):
                bert.variable(f"{variable.op.name}/{slot}", *variable.shape, trainable=False)
    v1.train.create_global_step()


def tensorflow_slots(bert, outputs):
    """The names that TensorFlow's own slots get under an optimizer of that name: VARIABLE/NAME, VARIABLE/NAME_1."""
    loss = sum(tf.reduce_sum(output) for output in outputs.values())
    optimizer = v1.train.AdamOptimizer(name="AdamWeightDecayOptimizer")
    optimizer.minimize(loss, global_step=v1.train.create_global_step())


def write(name, head, prefix="bert_model.ckpt", slots=None, devices=1, partitioned=False):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places = iter(range(10**6))
    cores = v1.ConfigProto(device_count={"CPU": devices})

    def device(op):  # variables in turn
        return f"/cpu:{next(places) % devices}" if op.type.startswith("Variable") else "/cpu:0"

    with tf.Graph().as_default(), v1.device(device), v1.Session(config=cores) as session:
        bert = Bert(partitioned)
        outputs = head(bert)
        if slots is not None:
            slots(bert, outputs)
        weights = sorted({variable.op.name for variable in v1.trainable_variables()})
        others = sorted({variable.op.name for variable in v1.global_variables()} - set(weights))
        session.run(v1.global_variables_initializer())
        computed = session.run(outputs | {"hidden_states": bert.states})
        saver = v1.train.Saver(sharded=devices > 1)
        saver.save(session, str(folder / prefix), write_meta_graph=False, write_state=False)
    if devices > 1 or partitioned:  # the variables of "encoder", differently stored
        return
    (folder / "bert_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    expected = {"inputs": INPUTS, "outputs": {key: shortest(value) for key, value in computed.items()}}
    expected |= {"weights": weights, "others": others}
    (folder / "expected.json").write_text(
        "{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in expected.items()) + "\n}\n"
    )


def shortest(value):
    """Nested lists, each number in as few digits as make the same float32."""
    if isinstance(value, np.float32):
        return float(str(value))
    return [shortest(part) for part in value]


if __name__ == "__main__":
    v1.disable_v2_behavior()
    write("encoder", encoder)
    write("pretraining", pretraining, slots=google_slots)
    write("classifier", classifier, "model.ckpt-3", slots=tensorflow_slots)
    write("squad", squad, "model.ckpt-3", slots=google_slots)
    write("two_shards", encoder, devices=2)
    write("partitioned", encoder, partitioned=True)
