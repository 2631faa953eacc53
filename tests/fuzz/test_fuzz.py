"""Spoiled checkpoints and models: refused in one line, or used; soon, and in little memory.

`python -m pytest tests/fuzz` is a short run, the same each time. A longer one of other examples:
`python -m pytest tests/fuzz --hypothesis-profile long`. What was found stands as `@example`.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import json_bytes, patched, pickle_bytes, spliced
from sandbox import run
from support import torch_zip
from support.checkpoints import Checkpoint

import numpy_bloom
from conversion import convert
from conversion.export import export
from conversion.verify import find_faults, ways_out
from numpy_bloom.weights.formats import FORMATS
from numpy_bloom.weights.manifest import parse_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Files = Mapping[str, bytes]

SMALL = Checkpoint(hidden=4, blocks=1, vocab=280, generation_config={"eos_token_id": [2]})


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _made(write: Callable[[Path], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return _files(Path(folder))


def _as_bin(folder: Path) -> None:
    SMALL.write(folder)
    (folder / "model.safetensors").unlink()
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(SMALL.tensors.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        tensors[name] = torch_zip.tensor(
            torch_zip.storage(str(key), array.size), array.shape, strides
        )
        storages[str(key)] = array.tobytes()
    torch_zip.write(folder / "pytorch_model.bin", tensors, storages)


def _converted(folder: Path, dtype: str = "keep") -> None:
    convert(SMALL.write(folder / "source"), folder / "model", dtype)
    for path in (folder / "model").iterdir():
        shutil.copy(path, folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "source")


ONE = _made(SMALL.write)
SHARDED = _made(lambda folder: SMALL.write(folder, shards=2))
BIN = _made(_as_bin)
MODEL = _made(_converted)
INDEX = "model.safetensors.index.json"
TORCH = "pytorch_model.bin"


def spoil(place: Path, action: Callable[[Path], object], files: Files) -> str | None:
    """Run an action on a folder of files, in a sandbox.

    Returns:
        The line that tells why it is refused, or None.
    """
    folder = place / "folder"
    shutil.rmtree(place)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return run(lambda: action(folder))


def convert_and_use(folder: Path) -> None:
    """All that a user does with a checkpoint."""
    target = folder.with_name("model")
    convert(folder, target)
    assert not list(find_faults(target, parse_manifest(target), deep=True))
    use(target)


def use(folder: Path) -> None:
    """All that a user does with a model."""
    with numpy_bloom.load(folder, memory="100MB", threads=1) as model:
        if model.tokenizer is not None:
            model.decode(model.encode("Once upon é一\U0001f600 </s>12  "))
        for token in model.generate([5, 6], max_new_tokens=2):
            assert isinstance(token.text, str)


def verify(folder: Path) -> None:
    """What `python -m conversion.verify` does."""
    manifest = parse_manifest(folder)
    faults = list(find_faults(folder, manifest, deep=True))
    assert all(fault.text.isprintable() for fault in faults)
    list(ways_out(faults, folder, manifest))


def give_back(folder: Path) -> None:
    """Make a checkpoint of a model again."""
    export(folder, folder.with_name("checkpoint"))


USES = st.sampled_from([use, verify, give_back])


def _with(content: bytes, **values: Any) -> bytes:
    """A JSON file with other values."""
    return json.dumps({**json.loads(content), **values}).encode()


CONFIG_VALUES = ["gpt2", "bloom", 7, 1001, 1 << 17, 1e-5, [2, 3]]


@given(content=json_bytes(ONE["config.json"], CONFIG_VALUES))
def test_config(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**ONE, "config.json": content})


@given(content=json_bytes(ONE["generation_config.json"]))
def test_generation_config(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**ONE, "generation_config.json": content})


SHARDS = [name for name in SHARDED if name.endswith(".safetensors")]


@given(content=json_bytes(SHARDED[INDEX], [*SHARDS, "config.json", "none.bin", INDEX]))
def test_index(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**SHARDED, INDEX: content})


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header and data of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    return content[8:start], content[start:]


HEADER_VALUES = ["F32", "F64", "BF16", "U64", "F4", [0, 16], [4, 4], [1 << 62, 4], [4], [1 << 40]]


@st.composite
def array_file(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file of which header, its length, or the data are others."""
    header, data = _split(content)
    if draw(st.booleans()):
        header = draw(json_bytes(header, [*HEADER_VALUES, len(data)]))
    else:
        data = draw(patched(data, range(0, len(data), 4)) if data else st.just(data))
    length = draw(st.sampled_from([len(header)] * 9 + [0, 2, 1 << 20, 1 << 40, (1 << 64) - 1]))
    data = draw(st.sampled_from([data, data, data, data[:-1], data + b"\0", b""]))
    return length.to_bytes(8, "little") + header + data


@given(content=array_file(ONE["model.safetensors"]))
def test_safetensors(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**ONE, "model.safetensors": content})


@given(content=spliced(ONE["model.safetensors"]))
def test_safetensors_bytes(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**ONE, "model.safetensors": content})


def _signatures(content: bytes) -> list[int]:
    """Where the records of a zip file begin."""
    return [i for i in range(len(content)) if content[i : i + 2] == b"PK"]


RECORDS = _signatures(BIN[TORCH])
LAST = [*RECORDS[-1:] * 10, *RECORDS]


@given(content=patched(BIN[TORCH], LAST) | spliced(BIN[TORCH]))
def test_zip(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**BIN, TORCH: content})


def _program(content: bytes) -> bytes:
    start = content.index(b"\x80\x02")
    return content[start : content.index(b"PK", start)]


@given(program=pickle_bytes(_program(BIN[TORCH])))
def test_pickle(place: Path, program: bytes) -> None:
    storages = {str(i): array.tobytes() for i, array in enumerate(SMALL.tensors.values())}
    with tempfile.TemporaryDirectory() as folder:
        path = torch_zip.write(Path(folder) / TORCH, {}, storages, **{"data.pkl": program})
        content = path.read_bytes()
    spoil(place, convert_and_use, {**BIN, TORCH: content})


@example(action=verify, content=_with(MODEL["manifest.json"], dtype=["float32"], files={}))
@given(action=USES, content=json_bytes(MODEL["manifest.json"], list(MODEL)))
def test_manifest(place: Path, action: Callable[[Path], object], content: bytes) -> None:
    spoil(place, action, {**MODEL, "manifest.json": content})


MODELS = {dtype: _made(partial(_converted, dtype=dtype)) for dtype in FORMATS}


@given(dtype=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_any_file_of_a_model(place: Path, dtype: str, data: st.DataObject) -> None:
    """Its size is noted as it is, so that the rest is looked at."""
    files = MODELS[dtype]
    name = data.draw(st.sampled_from(sorted(files)))
    is_json = name.endswith(".json")
    content = data.draw(json_bytes(files[name]) if is_json else array_file(files[name]))
    manifest = json.loads(files["manifest.json"])
    if name in manifest["files"]:
        manifest["files"][name]["size"] = len(content)
    spoiled = {**files, "manifest.json": json.dumps(manifest).encode(), name: content}
    spoil(place, data.draw(USES), spoiled)


KINDS = ["BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Split", "Sequence", "Metaspace"]
KINDS += ["Replace", "Precompiled", "FixedLength", "TemplateProcessing", "Strip", "Digits", "NFKD"]
KINDS += ["Punctuation", "BertProcessing", "Whitespace", "ByteFallback", "Fuse", "CTC", "Prepend"]
PARTS: list[Any] = [
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": "(a|a|aa)*$"}, "behavior": "Isolated", "invert": False},
    {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "FixedLength", "length": 0},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "MergedWithNext"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "NFKD"},
    {"type": "Fuse"},
    {"strategy": {"Fixed": 10**12}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 3},
    {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "q", "type_id": 0}}]},
    {"id": 4294967295, "content": "é", "normalized": True, "special": False, "lstrip": True},
]
PARTS += [{"type": "Sequence", key: [PARTS[7]] * 9} for key in ("pretokenizers", "normalizers")]


@example(content=_with(ONE["tokenizer.json"], normalizer={"type": ["NFC"]}))
@example(content=_with(ONE["tokenizer.json"], padding=PARTS[10], truncation=PARTS[11]))
@given(content=json_bytes(ONE["tokenizer.json"], [*KINDS, *PARTS, ["a", "b"], ["Ġ", "a"]]))
def test_tokenizer(place: Path, content: bytes) -> None:
    spoil(place, convert_and_use, {**ONE, "tokenizer.json": content})


def test_what_is_not_spoiled_is_used(place: Path) -> None:
    """Else nothing of the above would tell anything."""
    for files in (ONE, SHARDED, BIN):
        assert spoil(place, convert_and_use, files) is None
    for action in (use, verify, give_back):
        assert spoil(place, action, MODEL) is None
    assert np.isfinite(SMALL.tensors["ln_f.bias"]).all()


def test_the_sandbox_tells(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must not happen is seen."""
    monkeypatch.setattr("sandbox.MOST_SECONDS", 1)
    monkeypatch.setattr("sandbox.MOST_BYTES", 50_000_000)

    def hang(_folder: Path) -> None:
        while True:
            pass

    faults: list[tuple[Callable[[Path], object], str]] = [
        (hang, "ends with SIGXCPU"),
        (lambda _: np.ones(40_000_000).sum(), "takes"),
        (lambda _: np.ones(1 << 40), "MemoryError"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
    ]
    for action, told in faults:
        with pytest.raises(AssertionError, match=told):
            spoil(place, action, {})
