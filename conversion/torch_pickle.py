"""The pickle inside a file of `torch.save`, read without running what is in it.

A pickle is a program for a stack machine that may call any Python function. Even with a
`find_class` that allows nothing, `pickle.Unpickler` can be made to allocate gigabytes (a memo
index of 2**28) or to crash (a deeply nested tuple as a key). So the machine is written out here,
as PyTorch does for `weights_only=True`: it has the instructions that `torch.save` uses, takes
only strings as keys, and calls nothing; three function names make it push a description.
"""

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from numpy_bloom.errors import NumpyBloomError

FUNCTIONS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
MOST_AXES = 8
MOST_NAME = 100
"""Characters of a function's name: longer ones could be put together again and again."""
MOST_NUMBER = 1 << 63


@dataclass(frozen=True)
class _Global:
    """A name that the pickle may mention. Nothing is imported or called for it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The storage `data/<key>`: `numel` elements of a `type` such as `torch.FloatStorage`."""

    type: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides in elements, not compared with the storage yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"}


def read_pickle(program: bytes, path: Path) -> object:  # noqa: PLR0912 - one per instruction
    """What a pickle leaves on the stack: of a state dict, a dict of `Tensor` by name.

    torch.save writes pickle protocol 2; a few instructions of protocol 4 are understood so that
    what such a pickle asks for can be named.

    Args:
        program: the bytes of data.pkl.
        path: the file that errors should name.

    Raises:
        NumpyBloomError: it asks for a name, a call or an instruction that no state dict needs.
        LookupError, ValueError: it is malformed, or does not end.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE":
                stack.append(tuple(_pop_to_mark(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_pop(stack, int(opcode.name[-1]))))
            case "GLOBAL" | "INST":
                stack.append(_find(str(argument).replace(" ", "."), path))
            case "STACK_GLOBAL":
                stack.append(_find(".".join(map(_text, _pop(stack, 2))), path))
            case "BINPERSID":
                stack.append(_storage(stack.pop(), path))
            case "REDUCE":
                function, arguments = _pop(stack, 2)
                stack.append(_describe(function, arguments, path))
            case "SETITEM":
                _set_items(stack[-3], _pop(stack, 2), path)
            case "SETITEMS":
                items = _pop_to_mark(stack)
                _set_items(stack[-1], items, path)
            case "BUILD":  # attributes; a state dict's are the versions of its modules
                stack.pop()
            case name:
                raise _refusal(path, f"the instruction {name}")
    return stack.pop()


def _pop(stack: list[Any], count: int) -> list[Any]:
    if count > len(stack):
        raise IndexError("the pickle takes more from its stack than there is")
    items = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _refusal(path: Path, what: str) -> NumpyBloomError:
    return NumpyBloomError(
        f"refuses to load {path}: its pickle asks for {what}; a checkpoint needs only tensors, "
        "as torch.save(model.state_dict(), file) writes them"
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else f"<{type(value).__name__}>"


def _find(name: str, path: Path) -> _Global:
    # Storages of other types may be mentioned, so that the error can name the tensor that has one.
    storage = name.startswith("torch.") and name.endswith("Storage") and len(name) < MOST_NAME
    if storage or name in FUNCTIONS:
        return _Global(name)
    raise _refusal(path, repr(name[:200]))


def _storage(persistent_id: object, path: Path) -> Storage:
    match persistent_id:
        case ("storage", _Global(name), str(key), str(), numel) if (
            name not in FUNCTIONS and _is_count(numel)
        ):
            return Storage(name, key, numel)
    raise _refusal(path, "an object by a persistent id that names no storage")


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MOST_NUMBER


def _describe(function: object, arguments: object, path: Path) -> object:
    """What the call of an allowed function stands for; its arguments must have the right types.

    https://github.com/pytorch/pytorch/blob/main/torch/_utils.py has the three signatures.
    """
    if not isinstance(function, _Global):
        raise _refusal(path, f"a call of a {type(function).__name__}")
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, bool(), dict()):
            return tensor
        case (
            "torch._utils._rebuild_tensor_v2",
            (
                Storage() as storage,
                offset,
                tuple(size),
                tuple(stride),
                bool(),
                dict(),
                *metadata,
            ),
        ) if (
            len(size) == len(stride) <= MOST_AXES
            and _is_count(offset)
            and all(map(_is_count, (*size, *stride)))
            and metadata in ([], [None], [{}])  # it may ask for all values to be negated
        ):
            return Tensor(storage, offset, size, stride)
    raise _refusal(path, f"a call of {function.name!r} with unexpected arguments")


def _set_items(target: object, items: list[Any], path: Path) -> None:
    keys, values = items[::2], items[1::2]
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
        raise _refusal(path, "something other than a dict with names as keys")
    target.update(zip(keys, values, strict=True))
