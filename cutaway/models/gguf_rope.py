"""How GGUF says that rotary positions are stretched, both ways: metadata for linear and YaRN, a table for Llama 3.

As llama.cpp reads it (src/llama-model.cpp, ggml/src/ggml-cpu/ops.cpp): YaRN's sharpness is its own formula times
``attn_factor``, and what stands under ``yarn_attn_factor`` is not used; a table divides frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import FILE_AGAIN, ModelError
from cutaway.models.families.rope import KINDS, rope_parameters
from cutaway.models.gguf_file import GGUF
from cutaway.nn.position import AnyStretch, LinearStretch, Llama3Stretch, YarnStretch, frequencies

TABLE = "rope_freqs.weight"
_CLOSE = 1e-4  # of a table's numbers: they are float32, and made by formulas that round otherwise


def rope_of(file: GGUF, name: str, theta: float, head: int) -> dict[str, Any]:
    """``rope_parameters`` of config.json for a file of the architecture ``name``. Raises ModelError for a stretch that
    our model does not compute."""
    said, plain = file.metadata, {"rope_type": "default", "rope_theta": theta}
    kind = said.get(f"{name}.rope.scaling.type", "none")
    factor = file.number(f"{name}.rope.scaling.factor", 1.0, least=-1.0) or 1.0  # 0 is none there
    if TABLE in file.placed:
        if kind != "none" and factor != 1.0:
            raise ModelError(f"stretches its rotary positions by a table and by {kind!r}", where=file.path,
                             way_out="get the model's safetensors")
        return rope_parameters(theta, _of_table(file, theta, head))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return plain
    if kind not in ("linear", "yarn"):
        raise ModelError(f"stretches its rotary positions by {kind!r}", where=file.path,
                         way_out=f"supported are {', '.join(KINDS[1:])}")
    factor = file.number(f"{name}.rope.scaling.factor")
    tree = plain | {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return tree
    of = f"{name}.rope.scaling."
    if said.get(f"{of}yarn_log_multiplier", 0.0) != 0.0 or said.get(f"{of}yarn_ext_factor", 1.0) != 1.0:
        raise ModelError("stretches its rotary positions by a YaRN of its own", where=file.path,
                         way_out="get the model's safetensors")
    original = file.whole(f"{of}original_context_length", 0) or file.whole(f"{name}.context_length")
    return tree | {"original_max_position_embeddings": original, "truncate": True,
                   "beta_fast": file.number(f"{of}yarn_beta_fast", 32.0),
                   "beta_slow": file.number(f"{of}yarn_beta_slow", 1.0),
                   "attention_factor": _rounded(file.number(f"{of}attn_factor", 1.0) * _grown(factor), factor)}


def _rounded(sharpness: float, factor: float) -> float:
    """The formula's own, or what was meant before it was rounded to float32."""
    return _grown(factor) if math.isclose(sharpness, _grown(factor), rel_tol=1e-6) else float(f"{sharpness:.7g}")


def _grown(factor: float) -> float:
    """YaRN's sharpness by its formula."""
    return math.log(factor) / 10 + 1


def _of_table(file: GGUF, theta: float, head: int) -> Llama3Stretch:
    """Llama 3's stretch that gives the table in a file: what each frequency is divided by."""
    stored = file.tensors()[TABLE]
    if stored.shape != (head // 2,) or theta <= 1:
        raise ModelError(f"{TABLE} is {stored.shape}, and a head turns {head // 2} pairs", where=file.path,
                         way_out=FILE_AGAIN)
    table, plain = stored.read().double(), frequencies(head, theta, None)
    found = _fitted(table, plain)
    if found is None or not torch.allclose(plain / frequencies(head, theta, found), table, rtol=_CLOSE, atol=0):
        raise ModelError("stretches its rotary positions by a table (rope_freqs) that is not Llama 3's",
                         where=file.path,
                         way_out="get the model's safetensors, whose config.json says how the table was made")
    return found


def _fitted(table: Tensor, plain: Tensor) -> Llama3Stretch | None:
    """How much of a frequency is kept is a straight line of it, from none to all: the line through those between says
    everything but how long a context is: ``low`` is 1, as in every Llama 3, or next to it."""
    factor = float(table.max())
    if not torch.isfinite(table).all() or float(table.min()) < 1 - _CLOSE or factor <= 1 + _CLOSE:
        return None
    kept = (1 / table - 1 / factor) / (1 - 1 / factor)
    between = (kept > 10 * _CLOSE) & (kept < 1 - 10 * _CLOSE)
    places = plain[between]
    if len(places) > 1:
        slope = float((kept[between][0] - kept[between][-1]) / (places[0] - places[-1]))
        begin = slope * float(places[0]) - float(kept[between][0])
    elif len(places) == 1:
        begin = 1 / 3  # high is 4 times low, as in every Llama 3
        slope = (begin + float(kept[between][0])) / float(places[0])
    else:
        all_kept, none_kept = plain[kept >= 0.5], plain[kept < 0.5]
        if not len(all_kept) or not len(none_kept):
            return None
        begin = 1 / 3
        slope = math.sqrt(4 / 3 / float(all_kept.min()) * begin / float(none_kept.max()))
    if slope <= 0 or begin <= 0:
        return None
    original = slope / begin * 2 * math.pi
    low = _even(max(1, round(original)) / original)
    return Llama3Stretch(factor=_even(factor), low=low, high=_even(low * (1 + 1 / begin)),
                         original=max(1, round(original)))


def _even(number: float) -> float:
    """A number that was whole before it was rounded to float32."""
    return float(round(number)) if abs(number - round(number)) < 1e-3 else number


def described(name: str, stretch: AnyStretch) -> dict[str, str | float | int]:
    """The metadata of a stretch; that of Llama 3 is a table (``table_of``). Raises ModelError for one that llama.cpp
    does not compute."""
    of = f"{name}.rope.scaling."
    if isinstance(stretch, LinearStretch):
        return {f"{of}type": "linear", f"{of}factor": stretch.factor}
    if isinstance(stretch, Llama3Stretch):
        if name != "llama":
            raise ModelError(f"rotary positions stretched as in Llama 3 have no place in GGUF of {name}",
                             way_out="export it as safetensors")
        return {}
    plain = YarnStretch(factor=stretch.factor, original=stretch.original, attention=stretch.attention)
    if stretch != plain or name == "gemma3":  # llama.cpp has one ramp for all, and one sharpness for local layers too
        raise ModelError("rotary positions stretched by this YaRN have no place in GGUF",
                         way_out="export it as safetensors")
    return {f"{of}type": "yarn", f"{of}factor": stretch.factor, f"{of}original_context_length": stretch.original,
            f"{of}attn_factor": stretch.attention / _grown(stretch.factor)}


def table_of(stretch: AnyStretch | None, theta: float, head: int) -> Tensor | None:
    """``(head / 2,)`` float32: what each frequency is divided by, for the stretch that is told by a table."""
    if not isinstance(stretch, Llama3Stretch):
        return None
    return (frequencies(head, theta, None) / frequencies(head, theta, stretch)).float()
