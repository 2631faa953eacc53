"""Hostile tokenizers, and links in the place of files."""

from typing import Any

from support.hostile import (
    CONFIG,
    TOKENIZER,
    Hostile,
    Spoil,
    edited,
    in_place_of,
    sparse,
    updated,
    written,
)


def _part(room: str, part: dict[str, Any], times: int = 1) -> Spoil:
    inside = {
        "pre_tokenizer": "pretokenizers",
        "normalizer": "normalizers",
        "post_processor": "processors",
    }[room]
    return updated(TOKENIZER, **{room: {"type": "Sequence", inside: [part] * times}})


NEEDS = "which no tokenizer of a BLOOM needs; without this file a model takes and gives token ids"
REFUSED = "{folder}/tokenizer.json: "
TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SLOW = {"type": "Split", "pattern": {"Regex": "(a|a|aa)*$"}, "behavior": "Isolated", "invert": 0}
ADDED = {"id": 276, "content": "<more>", "special": False, "normalized": False} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip"), False
)
MANY = [ADDED | {"id": 4, "content": f"<{number}>"} for number in range(13)]
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 20_000,
    "pair": [],
    "special_tokens": {},
}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

TOKENIZERS = [
    Hostile(
        "tokenizer-large",
        "a file of a hundred MB",
        sparse(TOKENIZER, 10**8),
        "cannot read {folder}/tokenizer.json: it has 100,000,000 bytes, expected at most "
        "32,000,000",
    ),
    Hostile(
        "tokenizer-many-parts",
        "a million objects of two bytes",
        written(TOKENIZER, '{"model": [' + "{}," * 1_000_000 + "0]}"),
        "cannot read {folder}/tokenizer.json: some 2,000,002 values, expected at most 1,200,000",
    ),
    Hostile(
        "tokenizer-normalizer",
        "doubles every text forty times",
        _part("normalizer", TWICE, 40),
        REFUSED + "its normalizer has 40 parts, " + NEEDS,
    ),
    Hostile(
        "tokenizer-replace",
        "replaces text by other text",
        _part("normalizer", TWICE),
        REFUSED + "its normalizer has the part 'Replace', " + NEEDS,
    ),
    Hostile(
        "tokenizer-bytes",
        "spells every byte by two, again and again",
        _part("pre_tokenizer", BYTES, 30),
        REFUSED + "its pre_tokenizer has 30 parts, " + NEEDS,
    ),
    Hostile(
        "tokenizer-expression",
        "a regular expression that takes exponential time",
        _part("pre_tokenizer", SLOW),
        REFUSED + "its pre_tokenizer has the regular expression '(a|a|aa)*$', " + NEEDS,
    ),
    Hostile(
        "tokenizer-template",
        "a template that has every text in it twenty thousand times",
        _part("post_processor", TEMPLATE),
        REFUSED + "its post_processor repeats the text, or adds more than 5 tokens, " + NEEDS,
    ),
    Hostile(
        "tokenizer-prefix",
        "a prefix that makes the tokenizers library panic",
        edited(TOKENIZER, lambda v: v["model"].update(continuing_subword_prefix="##########")),
        REFUSED + "its model has a continuing_subword_prefix, " + NEEDS,
    ),
    Hostile(
        "tokenizer-model",
        "another algorithm, which fails on some texts",
        edited(TOKENIZER, lambda v: v.update(model={"type": "Unigram", "vocab": [["a", 0.0]]})),
        REFUSED + "its model is no BPE, " + NEEDS,
    ),
    Hostile(
        "tokenizer-merges",
        "merges that are none, each of which takes a kilobyte in the library",
        edited(TOKENIZER, lambda v: v["model"]["merges"].extend([{"": 0}] * 100_000)),
        REFUSED + "its vocabulary or its merges are malformed, " + NEEDS,
    ),
    Hostile(
        "tokenizer-part-array",
        "a part of which the type is an array; fuzzing found it",
        updated(TOKENIZER, normalizer={"type": ["NFC"]}),
        REFUSED + "its normalizer has the part ['NFC'], " + NEEDS,
    ),
    Hostile(
        "tokenizer-added",
        "an added token of two million characters, for which the library takes 150 MB",
        edited(TOKENIZER, lambda v: v["added_tokens"][0].update(content="ab" * 1_000_000)),
        REFUSED + "it has more than 1,000,000 characters beside its vocabulary, " + NEEDS,
    ),
    Hostile(
        "tokenizer-added-beyond",
        "an added token that has no row in the word embeddings",
        edited(TOKENIZER, lambda v: v["added_tokens"].append(ADDED)),
        REFUSED + "it has the token id 276, expected ids below 276, the vocab_size in config.json; "
        "without this file a model takes and gives token ids",
    ),
    Hostile(
        "tokenizer-added-many",
        "so many tokens with numbers of others that they get some beyond",
        edited(TOKENIZER, lambda v: v["added_tokens"].extend(MANY)),
        REFUSED + "it has the token id 276, expected ids below 276, the vocab_size in config.json; "
        "without this file a model takes and gives token ids",
    ),
    Hostile(
        "tokenizer-vocabulary-empty",
        "no token at all",
        edited(TOKENIZER, lambda v: v["model"].update(vocab={}, merges=[])),
        REFUSED + "its vocabulary is empty, " + NEEDS,
    ),
    Hostile(
        "tokenizer-vocabulary-beyond",
        "a token of the vocabulary that has none",
        edited(TOKENIZER, lambda v: v["model"]["vocab"].update(word=4_000_000_000)),
        REFUSED + "it has the token id 4,000,000,000, expected ids below 276, the vocab_size in "
        "config.json; without this file a model takes and gives token ids",
    ),
]

LINKS = [
    Hostile(
        "link-out",
        "has a file of this machine copied into the model",
        in_place_of(TOKENIZER, lambda path: path.symlink_to("/etc/passwd")),
        "{folder}/tokenizer.json is a link out of the checkpoint's folder, to /etc/passwd; "
        "expected a file. If you trust it, replace it by a copy",
    ),
    Hostile(
        "link-to-nothing",
        "a file that seems to be absent",
        in_place_of(TOKENIZER, lambda path: path.symlink_to("none")),
        "{folder}/tokenizer.json is a link to nothing; download it again",
    ),
    Hostile(
        "link-loop",
        "links to itself",
        in_place_of(CONFIG, lambda path: path.symlink_to(path)),
        "{folder}/config.json is a link to nothing; download it again",
    ),
]
