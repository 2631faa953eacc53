"""What is exported, opened by transformers: the model that the checkpoint was of."""

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import transformers_stages as ts  # noqa: E402

import numpy_bloom  # noqa: E402
from conversion import convert  # noqa: E402
from conversion import export as export_command  # noqa: E402
from conversion.export import export  # noqa: E402

IDS = [5, 17, 2, 99, 40, 40, 0]


def opened(folder: Path) -> "transformers.BloomForCausalLM":
    """As a user opens it, in the type that config.json names; nothing is missing or left over."""
    model, info = transformers.BloomForCausalLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], kind
    return model.eval()


def bits(tensor: "torch.Tensor") -> bytes:
    found: bytes = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize("shards", ["one", "several"])
@pytest.mark.parametrize("head", ["tied", "untied", "untied but equal"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("float32", "keep"),
        ("float16", "keep"),
        ("bfloat16", "keep"),
        ("bfloat16", "bfloat16-packed"),
    ],
)
def test_the_same_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    stored: str,
    head: str,
    shards: str,
) -> None:
    """Every parameter and every logit, bit for bit."""
    model = ts.random_bloom(ts.Sizes(heads=4, head_size=16, untied=head != "tied", seed=5))
    if head == "untied but equal":
        with torch.no_grad():
            model.lm_head.weight.copy_(model.transformer.word_embeddings.weight)
    ts.save(model, tmp_path / "original", getattr(torch, dtype), "safetensors")
    convert(tmp_path / "original", tmp_path / "model", stored)
    assert (tmp_path / "model/lm_head.safetensors").exists() == (head == "untied")
    if shards == "several":
        monkeypatch.setattr(export_command, "SHARD_BYTES", 100_000)
    export(tmp_path / "model", tmp_path / "exported")
    assert (len(list((tmp_path / "exported").glob("*.safetensors"))) > 1) == (shards == "several")
    before, after = opened(tmp_path / "original"), opened(tmp_path / "exported")
    expected, found = before.state_dict(), after.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == getattr(torch, dtype)
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor), name
    with torch.no_grad():
        logits = [m(torch.tensor([IDS])).logits for m in (before, after)]
    assert bits(logits[0]) == bits(logits[1])
    assert logits[0].isfinite().all()
    assert logits[0].std() > 0.1


@pytest.mark.parametrize("stored", ["int8", "int4"])
def test_integers(tmp_path: Path, stored: str) -> None:
    """Opened in float32, the exported model computes what ours computes with the integers; as far
    apart as the live parity suite allows."""
    sizes = ts.Sizes(heads=4, head_size=16, untied=True, seed=5)
    ts.save(ts.random_bloom(sizes), tmp_path / "original", torch.float32, "safetensors")
    convert(tmp_path / "original", tmp_path / "model", stored, head_dtype=stored)
    export(tmp_path / "model", tmp_path / "exported")
    theirs = ts.logits(opened(tmp_path / "exported"), IDS)
    with numpy_bloom.load(tmp_path / "model", threads=1) as bloom:
        ours = bloom(IDS)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    original = ts.logits(opened(tmp_path / "original"), IDS)
    assert np.abs(ours - original).max() > 1e-3 * np.abs(theirs).max()  # they did lose something


def test_integers_of_a_checkpoint_of_sixteen_bits(tmp_path: Path) -> None:
    """config.json is left as it was: what it names, bfloat16, is what transformers rounds to unless
    it is told float32."""
    sizes = ts.Sizes(heads=4, head_size=16, seed=5)
    ts.save(ts.random_bloom(sizes), tmp_path / "original", torch.bfloat16, "safetensors")
    convert(tmp_path / "original", tmp_path / "model", "int8")
    export(tmp_path / "model", tmp_path / "exported")
    name = "h.1.mlp.dense_h_to_4h.weight"
    rounded = opened(tmp_path / "exported").transformer.state_dict()[name]
    assert rounded.dtype == torch.bfloat16
    exact = ts.load(tmp_path / "exported").transformer.state_dict()[name]
    assert exact.dtype == torch.float32
    assert bits(exact.to(torch.bfloat16)) == bits(rounded)
    assert bits(exact) != bits(rounded.float())


def test_fast_tokenizer(tmp_path: Path) -> None:
    """The tokenizer of the demo model, too, opens as one of transformers'."""
    export(numpy_bloom.loading.DEMO, tmp_path / "demo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about itself
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "demo")
    with numpy_bloom.load() as bloom:
        text = "Todos los seres humanos nacen"
        assert tokenizer(text)["input_ids"] == list(bloom.encode(text))
        theirs = ts.logits(opened(tmp_path / "demo").float(), bloom.encode(text))
        np.testing.assert_allclose(bloom(bloom.encode(text)), theirs, atol=1e-3)
