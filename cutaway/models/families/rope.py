"""Rotary positions in a config.json: theta and how angles are stretched, in the form of today and those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cutaway.errors import FOLDER_AGAIN, ModelError, SettingsError
from cutaway.nn.position import AnyStretch, LinearStretch, Llama3Stretch, YarnStretch
from cutaway.settings import decode

KINDS = ("default", "linear", "llama3", "yarn")


def rope_of(public: Mapping[str, Any], layers: str | None = None, *, theta: float = 10_000.0,
            where: object) -> tuple[float, AnyStretch | None]:
    """Theta and stretch, of the ``layers`` of that type where they differ. Raises ModelError for a kind that our model
    does not compute."""
    tree = public.get("rope_parameters") or public.get("rope_scaling") or {}
    if layers is not None and isinstance(tree.get(layers), Mapping):
        tree = tree[layers]
    kind = tree.get("rope_type", tree.get("type", "default"))
    if kind not in KINDS or tree.get("partial_rotary_factor", 1.0) != 1.0:
        part = " that turn a part of a head" if kind in KINDS else ""
        raise ModelError(f"rotary positions of the kind {kind!r}{part} are unknown", where=where,
                         way_out=f"supported are {', '.join(KINDS)}")
    found = float(tree.get("rope_theta") or public.get("rope_theta") or theta)
    try:
        return found, _stretch(kind, tree, public)
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise ModelError(f"its rotary positions are not described ({error})", where=where,
                         way_out=FOLDER_AGAIN) from None


def _stretch(kind: str, tree: Mapping[str, Any], public: Mapping[str, Any]) -> AnyStretch | None:
    if kind == "default":
        return None
    if kind == "linear":
        return decode(LinearStretch, {"factor": tree["factor"]}, where="")
    original = tree.get("original_max_position_embeddings") or public.get("original_max_position_embeddings")
    if kind == "llama3":
        return decode(Llama3Stretch, {"factor": tree["factor"], "low": tree["low_freq_factor"],
                                      "high": tree["high_freq_factor"], "original": original}, where="")
    original = original or public["max_position_embeddings"]
    factor = tree.get("factor") or public["max_position_embeddings"] / original
    return decode(YarnStretch, {"factor": factor, "original": original, "fast": tree.get("beta_fast") or 32.0,
                                "slow": tree.get("beta_slow") or 1.0, "attention": _sharpness(tree, factor),
                                "whole": tree.get("truncate", True)}, where="")


def _sharpness(tree: Mapping[str, Any], factor: float) -> float:
    """YaRN's attention factor, which most leave to its formula."""
    if tree.get("attention_factor") is not None:
        return float(tree["attention_factor"])
    grown = math.log(factor) / 10 if factor > 1 else 0.0
    over, under = tree.get("mscale"), tree.get("mscale_all_dim")
    return (grown * over + 1) / (grown * under + 1) if over and under else grown + 1


def rope_parameters(theta: float, stretch: AnyStretch | None) -> dict[str, Any]:
    """The same as config.json has it."""
    if stretch is None:
        return {"rope_type": "default", "rope_theta": theta}
    out: dict[str, Any] = {"rope_type": stretch.kind, "rope_theta": theta, "factor": stretch.factor}
    if isinstance(stretch, LinearStretch):
        return out
    out["original_max_position_embeddings"] = stretch.original
    if isinstance(stretch, Llama3Stretch):
        return out | {"low_freq_factor": stretch.low, "high_freq_factor": stretch.high}
    return out | {"beta_fast": stretch.fast, "beta_slow": stretch.slow, "attention_factor": stretch.attention,
                  "truncate": stretch.whole}
