import dataclasses
import hashlib

import numpy as np
import pytest

from flaxbert.losses import IGNORE
from tests.train import corpora
from train.data.pretraining import segments, store_batches
from train.data.pretraining.masking import Masking, MaskingRule
from train.data.pretraining.segments import NextSentencePairs, StreamExamples, document_spans
from train.data.pretraining.store import TokenStore
from train.data.pretraining.store_batches import HeldOutBatches, PretrainingRowShape, RowBuilder, TrainBatches
from train.distributed import HostShard

STORE = corpora.store(corpora.documents(400))
EVERY = np.arange(STORE.document_count)
CLS, SEP = 2, 3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(store_batches, "_BLOCK_TOKENS", 10_000)


def builder(*, packed=False, pairs=True, store=STORE):
    masking = Masking.of(store.tokenizer, MaskingRule())
    shape = (
        PretrainingRowShape(64, 6, masking.rule.predictions(64, 6))
        if packed
        else PretrainingRowShape(32, None, masking.rule.predictions(32))
    )
    return RowBuilder(store, masking, shape, pairs)


def train(*, packed=False, pairs=True, seed=0, size=8, store=STORE, **how):
    every = np.arange(store.document_count)
    make = NextSentencePairs(store, every, max_length=32, short=0.1) if pairs else StreamExamples(store, max_length=32)
    return TrainBatches(
        store,
        every,
        build_examples=make,
        build_rows=builder(packed=packed, pairs=pairs, store=store),
        size=size,
        seed=seed,
        **how,
    )


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def unmasked(batch):
    ids = batch["input_ids"].copy()
    row, slot = np.nonzero(batch["masked_lm_labels"] != IGNORE)
    ids[row, batch["masked_lm_positions"][row, slot]] = batch["masked_lm_labels"][row, slot]
    return ids


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_is_a_function_of_seed_and_number(packed):
    batches, again = train(packed=packed), train(packed=packed)
    last = 2 * batches.rows_of_epoch // 8
    backwards = {i: again[i] for i in (last, 7, 3, 0)}  # whatever was asked for before
    for i, batch in backwards.items():
        same(batches[i], batch)
    assert (train(packed=packed, seed=1)[0]["input_ids"] != batches[0]["input_ids"]).any()
    assert (batches[batches.rows_of_epoch // 8]["input_ids"] != batches[0]["input_ids"]).any()


@pytest.mark.parametrize("packed", [False, True])
def test_parts_of_a_batch_put_together_are_the_batch(packed):
    whole = train(packed=packed)
    parts = [train(packed=packed, host_shard=HostShard(numbers, 4)) for numbers in ((0, 1), (2,), (3,))]
    for i in (0, 5, whole.rows_of_block // 8):
        found = [part[i] for part in parts]
        same(whole[i], {name: np.concatenate([part[name] for part in found]) for name in found[0]})


def test_a_row_is_what_it_should_be():
    for packed in (False, True):
        batch = train(packed=packed)[3]
        ids = unmasked(batch)
        segments = batch["segment_ids"] if packed else batch["attention_mask"]
        assert ((ids == 0) == (segments == 0)).all()
        for row in range(8):
            for segment in range(1, segments[row].max() + 1):
                here = segments[row] == segment
                tokens, types = ids[row, here], batch["token_type_ids"][row, here]
                separators = np.flatnonzero(tokens == SEP)
                assert tokens[0] == CLS and len(separators) == 2 and separators[1] == len(tokens) - 1
                np.testing.assert_array_equal(types, np.arange(len(tokens)) > separators[0])
                if packed:
                    np.testing.assert_array_equal(batch["position_ids"][row, here], np.arange(len(tokens)))
                    assert batch["first_positions"][row, segment - 1] == np.argmax(here)
            if packed:
                labelled = batch["next_sentence_labels"][row] != IGNORE
                np.testing.assert_array_equal(labelled, np.arange(6) < segments[row].max())
        if not packed:
            assert set(batch["next_sentence_labels"].tolist()) == {0, 1}


def test_an_epoch_shows_every_document():
    batches = train(pairs=False, size=1)
    tokens = [unmasked(batches[i]) for i in range(batches.rows_of_epoch)]
    shown = np.concatenate([row[row > 4] for row in tokens])
    whole = STORE.tokens.astype(np.int64)
    counts = np.bincount(shown, minlength=300), np.bincount(whole, minlength=300)
    assert np.abs(counts[0] - counts[1]).sum() < 0.02 * len(whole)  # blocks have not all as many rows as the first
    assert batches._block_count > 3


def test_masks_are_new_in_every_epoch():
    batches = train()
    keys = [set(batches._block(epoch, 0).examples.keys.tolist()) for epoch in (0, 1)]
    assert not keys[0] & keys[1]


def test_copies_come_again_in_another_order():
    batches = train(copies=2, size=1)
    rows = batches.rows_of_epoch
    every = [
        sorted(batches[epoch * rows + i]["input_ids"].tobytes() for i in range(batches.rows_of_block))
        for epoch in range(4)
    ]
    assert every[0] == every[2]
    # Of a block that has more rows than are taken others are left out each time.
    assert len(set(every[1]) & set(every[3])) > 0.9 * len(every[1]) and not set(every[0]) & set(every[1])
    assert any((batches[i]["input_ids"] != batches[2 * rows + i]["input_ids"]).any() for i in range(5))


def test_held_out_examples_come_once_each_and_always_the_same():
    for packed in (False, True):
        make = NextSentencePairs(STORE, EVERY[:50], max_length=32, short=0.1)
        held = HeldOutBatches(STORE, EVERY[:50], build_examples=make, build_rows=builder(packed=packed), size=8)
        found = list(held)
        assert len(found) == len(held)
        for batch, again in zip(found, held, strict=True):
            same(batch, again)
        count = sum((batch["next_sentence_labels"] != IGNORE).sum() for batch in found)
        assert count == len(held._examples) > 150
        halves = [list(dataclasses.replace(held, host_shard=HostShard((n,), 2))) for n in (0, 1)]
        for batch, a, b in zip(found, *halves, strict=True):
            same(batch, {name: np.concatenate([a[name], b[name]]) for name in batch})
        filling = (found[-1]["masked_lm_labels"] == IGNORE).all(axis=1)
        assert (found[-1]["input_ids"][filling] == 0).all()


def test_packed_rows_hold_the_same_examples_with_the_same_masks():
    def examples(batch, segments):
        for row in range(len(segments)):
            for segment in range(1, segments[row].max() + 1):
                here = segments[row] == segment
                yield (batch["input_ids"][row, here].tobytes(), unmasked(batch)[row, here].tobytes())

    alone, packed = train(size=1), train(size=1, packed=True)
    single = [next(examples(b, b["attention_mask"])) for b in map(alone.__getitem__, range(alone.rows_of_block))]
    shared = [e for i in range(packed.rows_of_block) for e in examples(packed[i], packed[i]["segment_ids"])]
    assert sorted(single) == sorted(shared)


def test_long_documents_go_in_parts_between_sentences(monkeypatch):
    monkeypatch.setattr(segments, "_SPAN_TOKENS", 300)
    texts = [[f"w{i % 200} w{i % 7}" for i in range(n)] for n in (1, 1000, 100, 200, 450)]
    store = corpora.store(texts)
    parts = document_spans(store, np.array([0, 1, 3, 4]))
    for document in (0, 1, 3, 4):
        own = parts[parts[:, 0] == document]
        assert own[0, 1] == store.documents[document] and own[-1, 2] == store.documents[document + 1]
        np.testing.assert_array_equal(own[1:, 1], own[:-1, 2])
    assert [(parts[:, 0] == document).sum() for document in (0, 1, 3, 4)] == [1, 7, 1, 3]
    one = corpora.store([[" ".join(corpora.WORDS * 5)]])  # a single sentence
    assert document_spans(one, np.array([0])).tolist() == [[0, 0, 1]]


def test_the_order_never_changes():
    """Runs that were begun with one version go on with the next."""
    digest = hashlib.sha256()
    for i in range(50):
        batch = train(packed=True)[i] if i % 10 == 0 else train()[i]
        for name in sorted(batch):
            digest.update(np.ascontiguousarray(batch[name], "<i4").tobytes())
    assert digest.hexdigest() == "da8546a153b28d266354f96b6050c764621f4175544abc6a3a3292093a393f2c"


def test_wikipedia_packed(data_dir, tmp_path, monkeypatch):
    from train.data.pretraining.preparation import Preparation, prepare_store

    monkeypatch.setattr(store_batches, "_BLOCK_TOKENS", 2**21)
    text = tmp_path / "text.txt"
    with (data_dir / "corpus" / "wiki_en.txt").open(encoding="utf-8") as whole:
        text.write_text(whole.read(6_000_000), encoding="utf-8")
    vocabulary = data_dir / "vocab" / "bert-base-uncased-vocab.txt"
    prepare_store(Preparation((str(text),), tmp_path / "store", tokenizer=vocabulary, workers=1))
    store = TokenStore.open(tmp_path / "store")
    every = np.arange(store.document_count)
    for length, row_length in ((128, 512), (512, 512), (512, 1024)):
        masking = Masking.of(store.tokenizer, MaskingRule())
        build = RowBuilder(
            store, masking, PretrainingRowShape.of(MaskingRule(), max_length=length, row_length=row_length), True
        )
        make = NextSentencePairs(store, every, max_length=length, short=0.1)
        packed = TrainBatches(store, every, build_examples=make, build_rows=build, size=32, seed=0)
        real = np.mean([(packed[i]["segment_ids"] > 0).mean() for i in range(packed.rows_of_block // 32)])
        assert real >= 0.98, (length, real)
