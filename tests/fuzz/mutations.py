"""Strategies that spoil what was well-formed: JSON trees, bytes, pickles."""

import json
import pickletools
import struct
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Draw = st.DrawFn

MOST_BYTES = 1_000_000
"""Of a value that is repeated."""

NUMBERS = [-1, 0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 63, 1 << 64, 10**30]
TEXTS = [
    "",
    ".",
    "..",
    "a",
    "../a",
    "/a",
    "a\0b",
    "\ud800",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "x" * 9999,
]
VALUES: list[Any] = [None, True, False, 1.5, 1e-300, 1e308, -0.0, [], {}, *NUMBERS, *TEXTS]
SPLICES = [b"NaN", b"-Infinity", b"1e999", b"[" * 40, b"[" * 9999, b'{"a":' * 30, b'"', b"\\", b","]
SPLICES += [
    b"\xff",
    b"\0",
    b"\xef\xbb\xbf",
    b"9" * 5000,
    b"}",
    b"]",
    b"\\ud800",
    b" " * 4096,
    b"{},",
]


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any, most: int = 400) -> list[tuple[Any, Any]]:
    """Every (parent, key) of a tree, up to so many."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < most:
        parent = waiting.pop(0)
        if isinstance(parent, dict | list):
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            found += [(parent, key) for key in list(keys)[:50]]
            waiting += [parent[key] for key in list(keys)[:50]]
    return found


@st.composite
def json_bytes(draw: Draw, original: bytes, values: Sequence[Any] = ()) -> bytes:
    """A JSON file of which some values are others, and perhaps some bytes."""
    tree = json.loads(original)
    twice: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        places = _places(tree)
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        match draw(st.integers(0, 7)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw(st.sampled_from([*TEXTS, *tree]))] = parent[key]
            case 2:
                room = max(1, MOST_BYTES // len(json.dumps(parent[key])))
                parent[key] = [parent[key]] * min(room, draw(st.sampled_from([1, 2, 1000])))
            case 3:
                parent[key] = draw(st.sampled_from([nested(15), nested(100), {"a": parent[key]}]))
            case 4:
                other, place = draw(st.sampled_from(places))
                parent[key] = deepcopy(other[place])
            case 5 if isinstance(parent, dict):
                twice.append(json.dumps(key))
            case _:
                parent[key] = deepcopy(draw(st.sampled_from([*VALUES, *values, *values])))
    content = json.dumps(tree)
    for key in twice:
        content = content.replace(key + ":", f"{key}: 0, {key}:", 1)
    if draw(st.integers(0, 3)) == 0:
        return draw(spliced(content.encode()))
    return content.encode()


@st.composite
def spliced(draw: Draw, content: bytes) -> bytes:
    """Bytes with some put in, taken out, or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 3)):
            case 0:
                content = content[:place]
            case 1:
                content = content[:place] + content[place + draw(st.integers(1, 50)) :]
            case _:
                piece = draw(st.sampled_from(SPLICES) | st.binary(max_size=8))
                content = content[:place] + piece + content[place:]
    return content


@st.composite
def patched(draw: Draw, content: bytes, places: Sequence[int]) -> bytes:
    """Bytes of which some numbers of 1, 2, 4 or 8 bytes near some places are others."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(places)) + draw(st.integers(0, 60))
        form = draw(st.sampled_from("BHIQ"))
        most = (1 << (8 * struct.calcsize(form))) - 1
        number = draw(st.sampled_from(NUMBERS) | st.integers(0, len(content)) | st.just(most))
        packed = struct.pack(f"<{form}", number & most)
        if place + len(packed) <= len(changed):
            changed[place : place + len(packed)] = packed
    return bytes(changed)


PIECES = [
    *(bytes([opcode.code.encode("latin-1")[0]]) for opcode in pickletools.opcodes),
    b"h\x00",
    b"h\x01",
    b"q\x00",
    b"r\xff\xff\xff\xff",
    b"(h\x00h\x00t",
    b"h\x00\x85q\x00" * 50,
    b"X\x04\x00\x00\x00torch",
    b"\x8c\x07Storage\x93",
    b"X\xff\xff\xff\x7fa",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff" + b"\xff" * 255,
    b"\x8a\x09" + b"\xff" * 8 + b"\x00",
    b"K\x00",
    b"K\xff",
    b"cos\nsystem\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n)R",
    b"}" * 1000,
    b"(" * 1000,
    b")\x85\x85\x85",
    b"F1e999\n",
    b"I" + b"9" * 5000 + b"\n",
    b"S'\\q'\n",
    b"V\\ud800\n",
]


@st.composite
def pickle_bytes(draw: Draw, program: bytes) -> bytes:
    """A pickle of which some instructions are others, repeated or gone."""
    starts = [place for _, _, place in pickletools.genops(program) if place is not None]
    steps = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(steps) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                del steps[place : place + draw(st.integers(1, 5))]
            case 1:
                steps[place:place] = steps[place : place + draw(st.integers(1, 20))]
            case 2:
                other = draw(st.integers(0, len(steps) - 1))
                steps[place], steps[other] = steps[other], steps[place]
            case 3:
                steps[place] = draw(spliced(steps[place]))
            case _:
                piece = draw(st.sampled_from(PIECES))
                steps.insert(place, piece * draw(st.sampled_from([1, 1, 1, 2, 100])))
        if not steps:
            break
    return b"".join(steps)
