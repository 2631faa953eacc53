"""Files of torch.save, read without torch: what is read, and what each fault is told."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import torch_zip
from support.conversions import whole
from support.torch_zip import Call, Global, Persistent, storage, tensor

from conversion.source_tensor import SourceTensor
from conversion.torch_file import read_torch_file
from numpy_bloom.errors import NumpyBloomError

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def view(size: tuple[int, ...], stride: tuple[int, ...], offset: Any = 0, *metadata: Any) -> Call:
    return tensor(storage("0", 12), size, stride, offset, *metadata)


def write_bin(path: Path, value: Any, **entries: bytes) -> Path:
    return torch_zip.write(path, value, {"0": VALUES.tobytes()}, **entries)


def test_views_of_one_storage(tmp_path: Path) -> None:
    views = {
        "whole": view((3, 4), (4, 1)),
        "again": view((3, 4), (4, 1)),
        "transposed": view((4, 3), (1, 4)),
        "columns": view((3, 2), (4, 1), 1),
        "flat": view((5,), (2,), 3),
        "expanded": view((2, 3), (0, 1), 8),
        "scalar": view((), (), 7),
        "empty": view((0, 4), (4, 1), 12),
        "cube": view((2, 2, 3), (6, 1, 2)),
    }
    flat = VALUES.ravel()
    expected: dict[str, np.ndarray[Any, Any]] = {
        "whole": VALUES,
        "again": VALUES,
        "transposed": VALUES.T,
        "columns": VALUES[:, 1:3],
        "flat": flat[3::2],
        "expanded": np.stack([flat[8:11]] * 2),
        "empty": np.zeros((0, 4)),
        "cube": flat.reshape(2, 3, 2).transpose(0, 2, 1),
    }
    found = read_torch_file(write_bin(tmp_path / "a.bin", views))
    assert list(found) == list(views)
    for name, array in expected.items():
        source = found[name]
        assert source.dtype == "float32" and source.name == name
        for start in range(len(array) + 1):
            for stop in range(start, len(array) + 1):
                rows = source.read_rows(start, stop)
                assert rows.dtype == np.float32 and rows.flags.c_contiguous
                np.testing.assert_array_equal(rows, array[start:stop])
                assert rows.shape == array[start:stop].shape
    assert found["scalar"].shape == ()
    assert found["scalar"].read_rows(0, 1).tolist() == [7]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 4), (2, 1)])
def test_rows_that_are_not_there(tmp_path: Path, start: int, stop: int) -> None:
    source = read_torch_file(write_bin(tmp_path / "a.bin", {"a": view((3, 4), (4, 1))}))["a"]
    with pytest.raises(ValueError, match=f"rows 0 to 3, not {start} to {stop}"):
        source.read_rows(start, stop)


@pytest.mark.parametrize(
    ("kind", "dtype", "stored"),
    [("Float", "float32", "<f4"), ("Half", "float16", "<f2"), ("BFloat16", "bfloat16", "<u2")],
)
def test_types_and_parameters(tmp_path: Path, kind: str, dtype: str, stored: str) -> None:
    bits = np.arange(6).astype(stored)
    inner = tensor(storage("7", 6, kind), (2, 3), (3, 1))
    hooks = Call(Global("collections.OrderedDict"), ())
    parameter = Call(Global("torch._utils._rebuild_parameter"), (inner, True, hooks))
    path = torch_zip.write(tmp_path / "a.bin", {"w": parameter}, {"7": bits.tobytes()})
    source = read_torch_file(path)["w"]
    assert source.dtype == dtype
    rows = whole(source)
    assert rows.dtype == np.dtype(stored)
    np.testing.assert_array_equal(rows, bits.reshape(2, 3))


def test_what_torch_wrote(tmp_path: Path) -> None:
    """The pickle of a tied embedding and a layer norm as torch 2.13 wrote it, memo and all."""
    program = (
        b"ccollections\nOrderedDict\nq\x00)Rq\x01(X\x16\x00\x00\x00word_embeddings.weightq\x02"
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x03((X\x07\x00\x00\x00storageq\x04ctorch\n"
        b"BFloat16Storage\nq\x05X\x01\x00\x00\x000q\x06X\x03\x00\x00\x00cpuq\x07K\x08tq\x08Q"
        b"K\x00K\x04K\x02\x86q\tK\x02K\x01\x86q\n\x89h\x00)Rq\x0btq\x0cRq\r"
        b"X\x0e\x00\x00\x00lm_head.weightq\x0eh\x03((h\x04h\x05h\x06h\x07K\x08tq\x0fQ"
        b"K\x00K\x04K\x02\x86q\x10K\x02K\x01\x86q\x11\x89h\x00)Rq\x12tq\x13Rq\x14"
        b"X\x0b\x00\x00\x00ln_f.weightq\x15h\x03((h\x04ctorch\nFloatStorage\nq\x16"
        b"X\x01\x00\x00\x001q\x17h\x07K\x02tq\x18QK\x00K\x02\x85q\x19K\x01\x85q\x1a\x89h\x00)R"
        b"q\x1btq\x1cRq\x1du}q&X\t\x00\x00\x00_metadataq'h\x00)Rq((X\x00\x00\x00\x00q)}q*"
        b"X\x07\x00\x00\x00versionq+K\x01sX\x04\x00\x00\x00ln_fq0}q1h+K\x01susb"
    )
    bits, ones = np.arange(8, dtype="<u2"), np.ones(2, np.float32)
    path = torch_zip.write(tmp_path / "a.bin", program, {"0": bits.tobytes(), "1": ones.tobytes()})
    found = read_torch_file(path)
    assert list(found) == ["word_embeddings.weight", "lm_head.weight", "ln_f.weight"]
    for name in ["word_embeddings.weight", "lm_head.weight"]:
        assert found[name].dtype == "bfloat16"
        np.testing.assert_array_equal(whole(found[name]), bits.reshape(4, 2))
    np.testing.assert_array_equal(whole(found["ln_f.weight"]), ones)


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """A sparse file of 8 GiB: rows near the end of a tensor of the size of the 176B embedding."""
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.seek(2**33)
        file.write(np.array([5, 6], "<u2").tobytes())
    rows = 2**31 // 4 + 1
    source = SourceTensor(path, "big", "bfloat16", (rows, 2), 2**33 - 4 * (rows - 1), (2, 1))
    assert source.read_rows(rows - 1, rows).tolist() == [[5, 6]]


# --- what is refused --------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(NumpyBloomError) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


class Evil:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_hostile_pickle_has_no_effect(tmp_path: Path, protocol: int) -> None:
    victim = tmp_path / "victim"
    program = pickle.dumps({"a": Evil(victim)}, protocol)
    pickle.loads(program)  # it does work
    assert victim.exists()
    victim.unlink()
    path = write_bin(tmp_path / "a.bin", b"", **{"data.pkl": program})
    assert "refuses to load" in refusal(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
        b"\x8c\x02os\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x85R",
        b"(X\x04\x00\x00\x00trueios\nsystem\n",
    ],
    ids=["GLOBAL", "STACK_GLOBAL", "INST"],
)
def test_names_are_refused_by_name(tmp_path: Path, program: bytes) -> None:
    message = refusal(write_bin(tmp_path / "a.bin", program))
    assert "asks for 'os.system'" in message and "only tensors" in message


ORDERED = Global("collections.OrderedDict")
REBUILD = "torch._utils._rebuild_tensor_v2"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": Call(ORDERED, ({"b": 1},))}, "call of 'collections.OrderedDict' with unexpected"),
        ({"a": Call(Global("torch.FloatStorage"), (1,))}, "call of 'torch.FloatStorage'"),
        ({"a": Call(Global("torch._utils._rebuild_parameter"), ("x", True, {}))}, "unexpected"),
        ({"a": Call("os.system", ("true",))}, "call of a str"),
        ({"a": tensor("0", (1,), (1,))}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((3,), (1, 1))}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((3,), (1,), -1)}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((3,), (-1,), 2)}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((3,), (1,), "0")}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((True,), (1,))}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((1,) * 9, (1,) * 9)}, f"call of '{REBUILD}' with unexpected"),
        ({"a": view((3,), (1,), 0, {"neg": True})}, f"call of '{REBUILD}' with unexpected"),
        ({"a": Persistent("module")}, "persistent id"),
        ({"a": Persistent(("storage", ORDERED, "0", "cpu", 1))}, "persistent id"),
        ({"a": view((3, 4), (4, 1)), 1: 2}, "dict with names as keys"),
        (b"}" + b")" + b"\x85" * 300_000 + b"Ns", "dict with names as keys"),
        (b"X\x01\x00\x00\x00aX\x01\x00\x00\x00bNs", "dict with names as keys"),
        (b"c__builtin__\nobject\n)\x81", "'__builtin__.object'"),
        (b"ccollections\nOrderedDict\n)\x81", "the instruction NEWOBJ"),
        (b"ccollections\nOrderedDict\nNR", "call of 'collections.OrderedDict' with unexpected"),
        (b"\x82\x01", "the instruction EXT1"),
        (b"]", "the instruction EMPTY_LIST"),
    ],
)
def test_pickle_that_asks_for_more(tmp_path: Path, value: Any, words: str) -> None:
    message = refusal(write_bin(tmp_path / "a.bin", value))
    assert message.startswith("refuses to load") and words in message


def test_memo_index_costs_no_memory(tmp_path: Path) -> None:
    """pickle.Unpickler allocates 16 bytes for each index up to the one that is asked for."""
    path = write_bin(tmp_path / "a.bin", b"}r\xff\xff\xff\xff")
    assert read_torch_file(path) == {}


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"}",
        b"X\xff\x00\x00\x00a.",
        b"\x85.",
        b"t.",
        b"u.",
        b"h\x00.",
        b"R.",
        b"S'\\q'\n.",
    ],
)
def test_malformed_pickle(tmp_path: Path, program: bytes) -> None:
    path = write_bin(tmp_path / "a.bin", b"", **{"data.pkl": program})
    assert "download it again" in refusal(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"state_dict": {"a": view((3, 4), (4, 1))}}, "'state_dict' is a dict, not a tensor"),
        ({"a": view((3, 4), (4, 1)), "epoch": 3}, "'epoch' is a int, not a tensor"),
        (view((3, 4), (4, 1)), "holds a Tensor, expected a dict"),
        (
            {"ids": tensor(storage("0", 6, "Long"), (6,), (1,))},
            "'ids'.*torch.LongStorage'; expected float32, float16, bfloat16$",
        ),
        ({"a": tensor(storage("0", 11), (3,), (1,))}, "'a'.*data/0 has 48 bytes, expected 44"),
        ({"a": tensor(storage("0", 12, "Half"), (3,), (1,))}, "has 48 bytes, expected 24"),
        ({"a": tensor(storage("1", 12), (3,), (1,))}, "data/1 is missing, expected 48"),
        ({"a": view((3, 4), (4, 1), 1)}, "'a'.*12 elements: offset 1"),
        ({"a": view((3, 5), (4, 1))}, r"12 elements.*size \(3, 5\)"),
        ({"a": view((2**40, 2**40), (2**40, 1))}, "12 elements"),
        ({"a": view((0,), (1,), 13)}, "12 elements: offset 13"),
    ],
)
def test_no_state_dict_of_whole_tensors(tmp_path: Path, value: Any, words: str) -> None:
    assert re.search(words, refusal(write_bin(tmp_path / "a.bin", value)))


STATE = {"a": view((3, 4), (4, 1))}


def test_truncated_bin(tmp_path: Path) -> None:
    content = write_bin(tmp_path / "a.bin", STATE).read_bytes()
    path = tmp_path / "short.bin"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert "download it again" in refusal(path)


def test_file_shrinks_after_opening(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", STATE)
    source = read_torch_file(path)["a"]
    path.write_bytes(path.read_bytes()[: source.offset + 20])
    with pytest.raises(NumpyBloomError, match=r"'a' in .*a\.bin is truncated"):
        whole(source)
    path.unlink()
    with pytest.raises(NumpyBloomError, match=r"cannot read 'a' in .*a\.bin"):
        whole(source)


@pytest.mark.parametrize("content", [b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"x\0ustar", b""])
def test_format_before_the_zip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "old.bin"
    path.write_bytes(content)
    message = refusal(path)
    assert "PyTorch 1.6" in message and "torch.save" in message


def test_missing_bin(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.bin")


def test_big_endian(tmp_path: Path) -> None:
    assert "little-endian" in refusal(write_bin(tmp_path / "a.bin", STATE, byteorder=b"big"))


def test_huge_pickle(tmp_path: Path) -> None:
    path = write_bin(tmp_path / "a.bin", b"N" * 1_000_001)
    assert "expected at most 1,000,000" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a/data.pkl", "a/data.pkl"], "two entries named 'a/data.pkl'"),
        (["a/data.pkl", "b/data.pkl"], "2 entries named <prefix>/data.pkl"),
        (["a/version"], "0 entries named <prefix>/data.pkl"),
    ],
)
def test_wrong_entries(tmp_path: Path, names: list[str], words: str) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("header_offset", 2**63, "download it again"),
        ("header_offset", 10**9, "no valid local header"),
        ("extract_version", 99, "NotImplementedError: zip file version 9.9"),
        ("file_size", 5, "sizes differ"),
        ("compress_type", zipfile.ZIP_DEFLATED, "is compressed"),
    ],
)
def test_directory_that_lies(tmp_path: Path, field: str, value: int, words: str) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        setattr(archive.filelist[0], field, value)
    assert words in refusal(path)


def test_local_headers(tmp_path: Path) -> None:
    content = write_bin(tmp_path / "a.bin", STATE).read_bytes()
    second = content.index(b"PK\x03\x04", 4)
    path = tmp_path / "b.bin"
    path.write_bytes(content[:second] + b"PK\x07\x04" + content[second + 4 :])
    assert "no valid local header" in refusal(path)
    extra = second + 28
    path.write_bytes(content[:extra] + b"\xff\xff" + content[extra + 2 :])
    assert "beyond the file's end" in refusal(path)
