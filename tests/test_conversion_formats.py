"""Conversion to every format of blocks and head: what is written, what it says, what is refused."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support.checkpoints import Array, Checkpoint, byte_ids, stored
from support.conversions import (
    converted,
    demo_checkpoint,
    manifest,
    read_arrays,
    read_matrix,
    refused,
    snapshot,
)

import numpy_bloom
from conversion import convert
from numpy_bloom.loading import DEMO
from numpy_bloom.weights.formats import FORMATS
from numpy_bloom.weights.linear import lookup

BLOCK, EMBEDDINGS, HEAD = "block_000.safetensors", "embeddings.safetensors", "lm_head.safetensors"
DENSE = "h.1.self_attention.dense.weight"
NEW = [dtype for dtype in FORMATS if dtype not in ("float32", "float16", "bfloat16")]
IDS = byte_ids("Todos los seres humanos")


def matrices_of(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """For each matrix of a checkpoint its file and its name there."""
    names = [name for name, tensor in checkpoint.tensors.items() if tensor.ndim == 2]
    places = {"word_embeddings.weight": EMBEDDINGS, "lm_head.weight": HEAD}
    result = {}
    for name in names:
        if name in places:
            result[name] = places[name], name
        else:
            _, block, inside = name.split(".", 2)
            result[name] = f"block_{int(block):03d}.safetensors", inside
    return result


def dequantised(checkpoint: Checkpoint, model: Path, dtype: str, head_dtype: str) -> Checkpoint:
    """The checkpoint in float32 with the numbers that a converted model has."""
    result = Checkpoint(**{**vars(checkpoint), "dtype": "float32"})
    result.tensors = dict(checkpoint.tensors)
    for name, (file, inside) in matrices_of(checkpoint).items():
        found, values = read_matrix(model / file, inside, checkpoint.tensors[name].shape)
        assert found == (dtype if name.startswith("h.") else head_dtype)
        result.tensors[name] = values
    return result


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("dtype", "default"),
    [("keep", None), ("int8", None), ("int4", "int8"), ("bfloat16-packed", "bfloat16-packed")],
)
@pytest.mark.parametrize("lm_head", [None, "different"])
def test_dtype_of_the_head(
    tmp_path: Path, source: str, dtype: str, default: str | None, lm_head: str | None
) -> None:
    """By default one step more careful than that of the blocks; None is that of the source."""
    checkpoint = Checkpoint(dtype=source, lm_head=lm_head)
    folder = checkpoint.write(tmp_path / "source")
    for given in (None, "keep", "int4"):
        head = (default if given is None else given) or source
        head = source if head == "keep" else head
        model = tmp_path / str(given)
        convert(folder, model, dtype, head_dtype=given)
        blocks = source if dtype == "keep" else dtype
        assert (manifest(model)["dtype"], manifest(model)["head_dtype"]) == (blocks, head)
        dequantised(checkpoint, model, blocks, head)


@pytest.mark.parametrize("dtype", NEW)
def test_files_are_safetensors(tmp_path: Path, dtype: str) -> None:
    """With the documented arrays beside each matrix, after it, and vectors as they were."""
    checkpoint = Checkpoint(dtype="bfloat16")
    model = converted(checkpoint, tmp_path, dtype, head_dtype=dtype)
    beside = {
        "int8": [("I8", ""), ("F32", ".row_scale"), ("F32", ".column_scale")],
        "int4": [("U8", ""), ("F32", ".column_scale")],
        "bfloat16-packed": [("U16", ""), ("U64", ".exponent_base"), ("U64", ".exceptions")],
    }[dtype]
    for file in model.glob("*.safetensors"):
        assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 4096 == 0
        expected = []
        for name in read_arrays(DEMO / file.name):  # which has the same parts
            if name.endswith(".weight") and "layernorm" not in name and "ln_f" not in name:
                expected += [(code, name + suffix) for code, suffix in beside]
            else:
                expected.append(("BF16", name))
        with safe_open(file, framework="numpy") as arrays:
            found = [(arrays.get_slice(name).get_dtype(), name) for name in arrays.offset_keys()]
        assert found == expected
        for name, (code, values) in read_arrays(file).items():
            if code == "BF16":
                prefix = "h.0." if file.name == BLOCK else "h.1." if "block" in file.name else ""
                np.testing.assert_array_equal(values, checkpoint.tensors[prefix + name])


def sizes(source: Path, folder: Path, file: str) -> dict[str, float]:
    """Of a file in each format, as shares of what bfloat16 takes."""
    found = {}
    for dtype in ("bfloat16", *NEW):
        convert(source, folder / dtype, dtype, head_dtype=dtype)
        assert manifest(folder / dtype)["dtype"] == dtype
        found[dtype] = (folder / dtype / file).stat().st_size
    return {dtype: size / found["bfloat16"] for dtype, size in found.items()}


def test_sizes(tmp_path: Path) -> None:
    """Besides 8, 4 or 12 bits of 16 there are scales, exceptions, vectors and the header."""
    checkpoint = Checkpoint(heads=4, hidden=512, blocks=1, dtype="bfloat16")
    share = sizes(checkpoint.write(tmp_path / "source"), tmp_path, BLOCK)
    assert 0.50 < share["int8"] <= 0.51
    assert 0.25 < share["int4"] <= 0.30
    assert 0.75 < share["bfloat16-packed"] <= 0.77


def test_sizes_of_the_demo_model(tmp_path: Path) -> None:
    """Of its blocks; they are small, so that header and scales weigh more."""
    source = demo_checkpoint(tmp_path / "source")
    share = sizes(source, tmp_path, BLOCK)
    assert 0.50 < share["int8"] <= 0.53
    assert 0.25 < share["int4"] <= 0.31
    assert 0.75 < share["bfloat16-packed"] <= 0.77
    for file in DEMO.glob("*.safetensors"):  # and the source is what the demo model was made of
        assert (tmp_path / "bfloat16" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_same_bytes_however_much_is_read_at_once(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(heads=2, hidden=136, blocks=1, vocab=150, tokenizer=None)
    source = checkpoint.write(tmp_path / "source")
    convert(source, tmp_path / "expected", dtype, head_dtype=dtype)
    expected = snapshot(tmp_path / "expected")
    for nbytes in (1, 5_000):
        monkeypatch.setattr(importlib.import_module("conversion.copying"), "ROWS_BYTES", nbytes)
        convert(source, tmp_path / str(nbytes), dtype, head_dtype=dtype)
        assert snapshot(tmp_path / str(nbytes)) == expected


def test_a_matrix_that_would_not_shrink_stays_bfloat16(tmp_path: Path) -> None:
    """And the model is `mixed`; its outputs are bit for bit those of bfloat16."""
    checkpoint = Checkpoint(dtype="bfloat16", lm_head="different")
    sizes = 10.0 ** np.random.default_rng(0).uniform(-30, 0, (16, 16))
    checkpoint.tensors[DENSE] = stored(sizes.astype(np.float32), "bfloat16")
    model = converted(checkpoint, tmp_path, "bfloat16-packed")
    assert manifest(model)["dtype"] == "mixed"
    assert manifest(model)["head_dtype"] == "bfloat16-packed"
    arrays = read_arrays(model / "block_001.safetensors")
    code, values = arrays["self_attention.dense.weight"]
    assert code == "BF16"
    np.testing.assert_array_equal(values, checkpoint.tensors[DENSE])
    assert arrays["mlp.dense_4h_to_h.weight"][0] == "U16"
    convert(tmp_path / "source", tmp_path / "plain")
    np.testing.assert_array_equal(logits(model), logits(tmp_path / "plain"))


def test_heads_of_different_types_are_mixed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(lm_head="different")
    checkpoint.tensors["lm_head.weight"] = stored(checkpoint.tensors["lm_head.weight"], "bfloat16")
    model = converted(checkpoint, tmp_path)
    assert (manifest(model)["dtype"], manifest(model)["head_dtype"]) == ("float32", "mixed")


# --- what it computes -----------------------------------------------------------------------------


def logits(model: Path) -> Array:
    with numpy_bloom.load(model, threads=1) as bloom:
        return bloom(IDS)


@pytest.fixture(scope="module", params=[None, "different"])
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Array]:
    """A checkpoint in float32, and the logits of its model."""
    checkpoint = Checkpoint(heads=4, hidden=64, lm_head=request.param, seed=3)
    return checkpoint, logits(converted(checkpoint, tmp_path_factory.mktemp("original")))


@pytest.mark.parametrize("dtype", NEW)
@pytest.mark.parametrize("head_dtype", ["float32", *NEW])
def test_outputs_are_those_of_the_numbers_in_the_files(
    tmp_path: Path, original: tuple[Checkpoint, Array], dtype: str, head_dtype: str
) -> None:
    checkpoint, exact = original
    model = converted(checkpoint, tmp_path / "one", dtype, head_dtype=head_dtype)
    plain = converted(dequantised(checkpoint, model, dtype, head_dtype), tmp_path / "other")
    found, expected = logits(model), logits(plain)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(found - exact).max() > 1e-4 * np.abs(exact).max()  # there is a difference


def test_packed_outputs_are_bit_for_bit_those_of_bfloat16(tmp_path: Path) -> None:
    checkpoint = Checkpoint(heads=4, hidden=64, dtype="bfloat16", lm_head="different")
    packed = converted(checkpoint, tmp_path / "packed", "bfloat16-packed")
    plain = converted(checkpoint, tmp_path / "plain")
    assert manifest(packed)["dtype"] == "bfloat16-packed"
    np.testing.assert_array_equal(logits(packed), logits(plain))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("lm_head", [None, "different"])
def test_rows_of_embeddings(tmp_path: Path, dtype: str, lm_head: str | None) -> None:
    """Of several blocks and of the last one, streamed and in memory."""
    checkpoint = Checkpoint(vocab=1037, lm_head=lm_head)
    model = converted(checkpoint, tmp_path, "float32", head_dtype=dtype)
    shape = checkpoint.tensors["word_embeddings.weight"].shape
    found, expected = read_matrix(model / EMBEDDINGS, "word_embeddings.weight", shape)
    assert found == dtype
    ids = np.array([1036, 0, 511, 512, 513, 15, 16, 17, 1023, 1024, 1035, 0, 700])
    with numpy_bloom.load(model) as bloom:
        for prepared in (False, True):
            if prepared:
                bloom(IDS)
            rows = lookup(bloom.model.parameters.word_embeddings, ids)
            np.testing.assert_allclose(rows, expected[ids], rtol=2.0**-22)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [DENSE, "ln_f.bias", "word_embeddings.weight", "lm_head.weight"])
def test_numbers_that_are_not_finite(tmp_path: Path, name: str, wrong: float, dtype: str) -> None:
    checkpoint = Checkpoint(lm_head="different")
    checkpoint.tensors[name].reshape(-1)[-1] = wrong
    source = checkpoint.write(tmp_path / "source", prefix="")
    told = f"'{name}' in {source / 'model.safetensors'} holds NaN or inf"
    refused(source, told, dtype=dtype, head_dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bfloat16-packed"])
@pytest.mark.parametrize("name", [DENSE, "word_embeddings.weight", "lm_head.weight"])
def test_values_too_large_for_the_type(tmp_path: Path, name: str, dtype: str) -> None:
    """For the integers no value is too large."""
    checkpoint = Checkpoint(lm_head="different")
    checkpoint.tensors[name][3, 4] = -3.4e38
    source = checkpoint.write(tmp_path / "source", prefix="")
    told = f"'{name}' in {source / 'model.safetensors'} has values too large for "
    refused(source, told + dtype.removesuffix("-packed"), dtype=dtype, head_dtype=dtype)
    convert(source, tmp_path / "fits", "int8", head_dtype="int4")


def test_bfloat16_is_not_made_float16(tmp_path: Path) -> None:
    source = Checkpoint(dtype="bfloat16").write(tmp_path / "source", prefix="")
    for name, options in {
        "word_embeddings.weight": {"head_dtype": "float16"},
        "h.0.self_attention.query_key_value.weight": {"dtype": "float16", "head_dtype": "int8"},
    }.items():
        refused(source, f"'{name}' in {source / 'model.safetensors'} is bfloat16, whose", **options)


def test_unknown_head_dtype(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    told = "head_dtype is 'int3'; expected one of keep, float32,"
    refused(source, told, dtype="int8", head_dtype="int3")
