"""The format of architectures that no public one holds: our own names, and our configuration under ``config``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cutaway.errors import FOLDER_AGAIN, ModelError, SettingsError
from cutaway.models.architectures import AnyConfig, decode_config
from cutaway.models.families.family import Form, head_of, labels
from cutaway.models.heads import Head, HeadKind, kind_of
from cutaway.models.model import blank

ARCHITECTURES: dict[HeadKind, str] = {"tokens": "CutawayForTokens", "scalar": "CutawayForScalar",
                                      "classes": "CutawayForClasses", "vector": "CutawayForVector"}
REPEATS: tuple[str, ...] = ()
UNREAD: tuple[str, ...] = ()


def names(config: AnyConfig, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every parameter under its own name."""
    with torch.device("meta"):
        model = blank(config, head=head)
    yield from ((name, (name,)) for name, _ in model.named_parameters())


def rows(ours: str, config: AnyConfig) -> tuple[int, ...] | None:
    """No matrix is split."""
    return None


def forms(ours: str, config: AnyConfig) -> tuple[Form, ...] | None:
    """The numbers are ours."""
    return None


def public_config(config: AnyConfig, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
    """config.json."""
    return {"architectures": [ARCHITECTURES[kind_of(head)]], "model_type": f"cutaway-{config.kind}", "dtype": dtype,
            "config": config.model_dump(), "bos_token_id": control.get("bos"), "eos_token_id": control.get("eos"),
            "pad_token_id": control.get("pad"), **labels(head)}


def our_config(public: Mapping[str, Any], *, where: object) -> tuple[AnyConfig, Head]:
    """The configuration and head of a config.json."""
    try:
        return decode_config(public.get("config")), head_of(public, ARCHITECTURES, where)
    except SettingsError as error:
        raise ModelError(f"does not describe a model: {error.what}", where=where, way_out=FOLDER_AGAIN) from None
