"""One dial: an architecture of any kind and shape sized to a number of parameters (after nanochat's depth).

What is counted are the parameters outside embedding and head: they are what reads, and a vocabulary would drown them in
a small model. The count is the configuration's own ``cost``, so that kinds are compared at equal size exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cutaway.errors import ModelError, SettingsError
from cutaway.models.architectures import CONFIGS, AnyConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.settings import decode, nearest

WIDEST = 1 << 14
SHAPES = ("decoder", "encoder", "encoder-decoder")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is fixed before the width is looked for."""

    shape: str
    vocab_size: int
    context_length: int
    num_layers: int
    options: dict[str, Any]


def sized(kind: str, parameters: int, vocab_size: int, context_length: int, *, shape: str = "decoder",
          num_layers: int | None = None, options: dict[str, Any] | None = None, tolerance: float = 0.1) -> AnyConfig:
    """The configuration of ``kind`` whose parameters outside embedding and head come nearest to ``parameters``.

    ``num_layers`` (of each stack) follows from the budget where it is not given; ``options`` are further settings of
    the kind, such as ``{"cell": "gru"}`` or ``{"kernel_sizes": [5]}``. The same wish gives the same configuration.
    Raises ModelError where nothing comes within ``tolerance``, SettingsError for a kind or an option unknown.

    >>> config = sized("transformer", 100_000, vocab_size=512, context_length=128)
    >>> config.hidden_size, config.num_layers, config.cost().blocks
    (64, 2, 99904)
    """
    if kind not in CONFIGS or kind not in _WIDTHS:
        near = nearest(kind, _WIDTHS)
        raise SettingsError(f"no architecture that can be sized is called {kind!r}", way_out=f"did you mean {near!r}?"
                            if near else f"there are {', '.join(k for k in _WIDTHS if k in CONFIGS)}")
    if shape not in SHAPES:
        raise SettingsError(f"no shape is called {shape!r}", way_out=f"there are {', '.join(SHAPES)}")
    layers = _layers(kind, parameters, shape) if num_layers is None else num_layers
    wish = Wish(shape, vocab_size, context_length, layers, options or {})
    width = _width(lambda w: _made(kind, wish, w).cost().blocks, parameters)
    tried = [_made(kind, wish, w) for w in (width, width + 1)]
    found = min(tried, key=lambda c: abs(c.cost().blocks - parameters))
    if isinstance(found, TransformerConfig):
        found = _refined(found, parameters)
    got = found.cost().blocks
    if abs(got - parameters) > tolerance * parameters:
        raise ModelError(f"no {kind} of {layers} layers has {parameters:,} parameters outside its embedding: the "
                         f"nearest has {got:,}", way_out="give another number of parameters, or of layers")
    return found


def _layers(kind: str, parameters: int, shape: str) -> int:
    """Two layers up to a few hundred thousand parameters, then a width of about 64 a layer (a convolution, whose layers
    see little each, has twice as many)."""
    stacks = 2 if shape == "encoder-decoder" else 1
    deep = max(2, round(math.cbrt(parameters / stacks / (12 * 64**2))))
    return deep * 2 if kind == "convolution" else deep


def _width(blocks: Callable[[int], int], wanted: int) -> int:
    """The largest step of the dial whose parameters are at most ``wanted``; the count grows with the width."""
    low, high = 1, 2
    while high < WIDEST and blocks(high) <= wanted:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if blocks(middle) <= wanted else (low, middle)
    return low


def _made(kind: str, wish: Wish, step: int) -> AnyConfig:
    if kind == "convolution" and wish.shape == "encoder":  # one layer of filters side by side
        rest = _WIDTHS[kind](wish, step)
    else:
        rest = {"num_layers": wish.num_layers, **_WIDTHS[kind](wish, step)}
    tree = {"kind": kind, "shape": wish.shape, "vocab_size": wish.vocab_size, "context_length": wish.context_length,
            **rest, **wish.options}
    return decode(CONFIGS[kind], tree, where="")


def _transformer(wish: Wish, step: int) -> dict[str, Any]:
    """Width in steps of 8, or of what the heads asked for need; heads about 32 wide; a feed-forward part of 8/3."""
    asked = wish.options.get("num_heads")
    width = (8 if asked is None else math.lcm(8, 2 * asked)) * step
    heads = max(h for h in range(1, max(1, width // 32) + 1) if width % (2 * h) == 0)
    return {"hidden_size": width, "num_heads": heads, "num_kv_heads": heads, "intermediate_size": width * 8 // 3}


def _refined(config: TransformerConfig, wanted: int) -> TransformerConfig:
    """The same with the feed-forward width that comes nearest, within a fifth of what it was."""
    inner = config.intermediate_size
    each = config.model_copy(update={"intermediate_size": inner + 1}).cost().blocks - config.cost().blocks
    more = round((wanted - config.cost().blocks) / each)
    more = max(-inner // 5, min(inner // 5, more))
    return config.model_copy(update={"intermediate_size": inner + more})


def _recurrent(_: Wish, step: int) -> dict[str, Any]:
    """Any even width."""
    return {"hidden_size": 2 * step}


def _convolution(wish: Wish, step: int) -> dict[str, Any]:
    """Any width that the filters share evenly; each layer sees twice as far as the one below, as in WaveNet."""
    if wish.shape == "encoder":
        each = math.lcm(2, len(wish.options.get("kernel_sizes", (3, 4, 5))))
        return {"hidden_size": each * step}
    dilations = tuple(2 ** (i % 9) for i in range(wish.num_layers)) if wish.shape == "decoder" else (1,)
    return {"hidden_size": 2 * step, "dilations": dilations}


_WIDTHS: dict[str, Callable[[Wish, int], dict[str, Any]]] = {
    "transformer": _transformer, "recurrent": _recurrent, "convolution": _convolution}
