"""Taps: how an onlooker sees, or replaces, every intermediate array by its name.

Each stage of the forward pass hands its array to `tap(name, array)` and goes on with what comes
back. Names follow TransformerLens, without its "hook_": `blocks.3.attn.pattern`.
"""

from collections.abc import Callable

from numpy_bloom.weights.dtypes import Floats

Tap = Callable[[str, Floats], Floats]


def no_tap(_name: str, array: Floats) -> Floats:
    """Nobody looks: the identity."""
    return array


def prefixed(tap: Tap, prefix: str) -> Tap:
    """The same tap, seen from a part whose names all begin with `prefix`."""
    if tap is no_tap:
        return no_tap
    return lambda name, array: tap(prefix + name, array)
