"""Random tokenizer folders and texts: settings, special tokens in all four places, vocabulary files of practice."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ROBERTA_NAMES = {
    "bos": "<s>",
    "cls": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "pad": "<pad>",
    "unk": "<unk>",
    "mask": "<mask>",
}
WORDS = [
    "cafe",
    "café",
    "Café",
    "caf",
    "##e",
    "##é",
    "the",
    "The",
    "a",
    "b",
    "##a",
    "##b",
    "자",
    "##연",
    "自",
    "然",
    "自然",
]
WORDS += [
    "<",
    ">",
    "ent",
    "##ent",
    ".",
    ",",
    "'",
    "[",
    "]",
    "/",
    "mask",
    "s",
    "x",
    "##x",
    "i",
    "##i",
    "q",
    "uncle",
    "ﬁ",
]
ADDED = ["<ent>", "New York", "café", "[E1]", "ab", " lead", "Ünit", "👩‍👩‍👧"]
PARTS = [
    *WORDS,
    *ADDED,
    *BERT_TOKENS,
    *ROBERTA_TOKENS,
    " ",
    "  ",
    "\t",
    "\n",
    "\u2028",
    "\u00a0",
    "\u200b",
    "e\u0301",
    "İ",
    "ß",
]


def texts(draw: random.Random, count: int) -> list[str]:
    """Return texts of known and unknown words, marks and special tokens."""
    return [
        "".join(draw.choice(PARTS) + draw.choice(["", " "]) for _ in range(draw.randrange(9))) for _ in range(count)
    ]


def write_folder(folder: Path, draw: random.Random) -> None:
    """Write the tokenizer files, and mostly a config.json, of a random folder."""
    folder.mkdir()
    kind = draw.choice(["vocabulary", "vocabulary", "both", "stored", "stored class", "unigram", "bpe", "mpnet"])
    config: dict[str, object] = {}
    if kind == "unigram":
        model_type = "bert"
        config["tokenizer_class"] = draw.choice(
            ["XLMRobertaTokenizer", "XLMRobertaTokenizerFast", "CamembertTokenizer", "PreTrainedTokenizerFast"]
        )
    elif kind == "bpe":
        model_type = draw.choice(["roberta", "bert"])
        config["tokenizer_class"] = draw.choice(["RobertaTokenizer", "RobertaTokenizerFast", "PreTrainedTokenizerFast"])
    elif kind == "mpnet":
        model_type = draw.choice(["mpnet", "bert"])
        config["tokenizer_class"] = draw.choice(["MPNetTokenizer", "MPNetTokenizerFast"])
    else:
        model_type = "bert"
        _maybe(
            draw,
            config,
            "tokenizer_class",
            [
                "BertTokenizer",
                "BertTokenizerFast",
                "DistilBertTokenizer",
                "ElectraTokenizer",
                "FooTokenizer",
                "AlbertTokenizer",
            ],
            0.4,
        )
    if kind == "stored class":
        config["tokenizer_class"] = draw.choice(["PreTrainedTokenizerFast", "TokenizersBackend"])
    if kind in ("unigram", "bpe"):
        backend = _unigram(draw) if kind == "unigram" else _bpe(draw)
        names = {f"{role}_token": token for role, token in ROBERTA_NAMES.items()}
        if draw.random() < 0.8:
            config |= names
        config["add_prefix_space"] = draw.random() < 0.5
    else:
        backend = _word_pieces(folder, draw, kind)
    _maybe(draw, config, "do_lower_case", [True, False, "no"] if draw.random() < 0.05 else [True, False], 0.7)
    _maybe(draw, config, "strip_accents", [True, False, None], 0.3)
    _maybe(draw, config, "tokenize_chinese_chars", [True, False], 0.3)
    _maybe(draw, config, "truncation_side", ["left", "right"], 0.2)
    _maybe(draw, config, "model_max_length", [7, 512, 10**30], 0.4)
    _maybe(draw, config, "split_special_tokens", [True, False], 0.1)
    _maybe(draw, config, "model_input_names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids"]], 0.1)
    _maybe(draw, config, "never_split", [["cafe"]], 0.05)
    _declare_tokens(folder, draw, config, backend)
    if backend is not None:
        if draw.random() < 0.2:
            backend.enable_truncation(draw.choice([6, 128]), direction=draw.choice(["left", "right"]))
        if draw.random() < 0.2:
            backend.enable_padding(length=draw.choice([None, 8]))
        backend.save(str(folder / "tokenizer.json"))
    if config or draw.random() < 0.3:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if draw.random() < 0.9:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def _maybe(draw: random.Random, config: dict[str, object], key: str, values: list, share: float) -> None:
    if draw.random() < share:
        config[key] = draw.choice(values)


def _word_pieces(folder: Path, draw: random.Random, kind: str) -> Tokenizer | None:
    special = ["<pad>", "[UNK]", "<s>", "</s>", "<mask>"] if kind == "mpnet" else list(BERT_TOKENS)
    if draw.random() < 0.1:
        special[draw.randrange(5)] = draw.choice(["<mask>", "<s>", "[unused0]"])
    lines = [*special, *draw.sample(WORDS, draw.randrange(12, len(WORDS)))]
    with_vocabulary = kind in ("vocabulary", "both") or (kind == "mpnet" and draw.random() < 0.7)
    if with_vocabulary:
        for noise in ("", draw.choice(WORDS), "tail \u3000", "\u2028", "\x0b", "c\rd"):
            if draw.random() < 0.15:
                lines.insert(draw.randrange(5, len(lines)), noise)
        end = draw.choice(["\n", "\n", "\n", "\r\n", "\r"] if draw.random() < 0.2 else ["\n"])
        content = end.join(lines) + draw.choice(["", end, end, 2 * end])
        mark = b"\xef\xbb\xbf" if draw.random() < 0.03 else b""
        (folder / "vocab.txt").write_bytes(mark + content.encode())
    if kind == "vocabulary" or (kind == "mpnet" and with_vocabulary and draw.random() < 0.5):
        return None
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(lines)}, unk_token=special[1]))
    lowercase = draw.random() < 0.7
    backend.normalizer = draw.choice(
        [
            normalizers.BertNormalizer(lowercase=lowercase),
            normalizers.BertNormalizer(lowercase=lowercase),
            normalizers.BertNormalizer(strip_accents=draw.choice([None, True, False]), handle_chinese_chars=lowercase),
            normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        ]
    )
    backend.pre_tokenizer = draw.choice(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Whitespace()]
    )
    backend.decoder = decoders.WordPiece()
    if draw.random() < 0.8:
        cls, sep = special[2], special[3]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(cls, 2), (sep, 3)]
        )
    if draw.random() < 0.7:
        backend.add_special_tokens(special)
    return backend


def _unigram(draw: random.Random) -> Tokenizer:
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *WORDS[:12], "a", "e", "c", "f", "é"]
    vocabulary = [(token, 0.0) for token in ["<s>", "<pad>", "</s>", "<unk>"]]
    vocabulary += [(piece, -1.0 - i / 10) for i, piece in enumerate(dict.fromkeys(pieces))]
    backend = Tokenizer(models.Unigram([*vocabulary, ("<mask>", 0.0)], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=draw.choice(["always", "first"]))
    backend.decoder = decoders.Metaspace()
    if draw.random() < 0.5:
        backend.normalizer = normalizers.NFKC()
    if draw.random() < 0.9:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    backend.add_special_tokens([*ROBERTA_TOKENS[:4], AddedToken("<mask>", lstrip=True)])
    return backend


def _bpe(draw: random.Random) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*ROBERTA_TOKENS, *alphabet, "ca", "fe", "cafe", "Ġa", "Ġb"])}
    merges = [("c", "a"), ("f", "e"), ("ca", "fe"), ("Ġ", "a"), ("Ġ", "b")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.3)
    backend.decoder = decoders.ByteLevel()
    if draw.random() < 0.9:
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    if draw.random() < 0.8:
        backend.add_special_tokens([*ROBERTA_TOKENS[:4], AddedToken("<mask>", lstrip=True)])
    return backend


def _declare_tokens(folder: Path, draw: random.Random, config: dict[str, object], backend: Tokenizer | None) -> None:
    """Declare further tokens in a random choice of the four places."""
    if backend is not None:
        size = backend.get_vocab_size()
    else:
        size = len(models.WordPiece.read_file(str(folder / "vocab.txt")))
    tokens = draw.sample(ADDED, draw.randrange(3)) if draw.random() < 0.6 else []
    numbered = {token: size + i for i, token in enumerate(tokens)}
    if draw.random() < 0.05:
        numbered = {token: number + 3 for token, number in numbered.items()}
    if draw.random() < 0.25 and numbered:
        (folder / "added_tokens.json").write_text(json.dumps(numbered))
    if draw.random() < 0.2:
        config["added_tokens_decoder"] = {
            str(number): {
                "content": token,
                "lstrip": draw.random() < 0.2,
                "normalized": draw.random() < 0.5,
                "special": draw.random() < 0.5,
            }
            for token, number in numbered.items()
        }
    if backend is not None and draw.random() < 0.3 and tokens:
        backend.add_tokens(
            [AddedToken(token, normalized=draw.random() < 0.5, special=draw.random() < 0.3) for token in tokens]
        )
    if draw.random() < 0.15 and tokens:
        config[draw.choice(["additional_special_tokens", "extra_special_tokens"])] = tokens
    if draw.random() < 0.1:
        config["extra_special_tokens"] = draw.choice([{"ent_token": "<ent>"}, {}, None, []])
    if draw.random() < 0.05:
        config["image_token"] = "[E1]"
    special: dict[str, object] = {}
    if backend is None or isinstance(backend.model, models.WordPiece):
        names = dict(zip(["pad", "unk", "cls", "sep", "mask"], BERT_TOKENS, strict=True))
        for role, token in names.items():
            if draw.random() < 0.15:
                config[f"{role}_token"] = draw.choice(
                    [token, token, {"__type": "AddedToken", "content": token, "lstrip": True, "normalized": False}]
                )
            if draw.random() < 0.15:
                special[f"{role}_token"] = draw.choice(
                    [token, {"content": token, "normalized": draw.random() < 0.3, "lstrip": draw.random() < 0.3}]
                )
        if draw.random() < 0.1:
            draw.choice([config, special])["mask_token"] = draw.choice(["<mask>", "[unused0]"])
    if draw.random() < 0.15 and tokens:
        special[draw.choice(["additional_special_tokens", "extra_special_tokens"])] = tokens
    if special and draw.random() < 0.7:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))


def mutate(value: object, draw: random.Random) -> object:
    """Return JSON with one entry deleted or replaced by another kind of value."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        i = draw.randrange(len(value))
        return [*value[:i], mutate(value[i], draw), *value[i + 1 :]]
    return draw.choice([None, True, 0, -1, 1e400, "x", [], {}, [1], {"a": 1}, [None], 2**40])
