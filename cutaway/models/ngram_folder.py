"""An n-gram model as a folder: config.json, model.safetensors, the tokenizer's files, and digests in cutaway.json.

The same outline as the folders of other models, so what a folder holds is told by ``model_type`` and not by its name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import ModelError, SettingsError
from cutaway.models.ngram import NGram, NGramConfig
from cutaway.models.whole import (
    AGAIN,
    CONFIG,
    SIDE,
    TOKENIZER,
    WEIGHTS,
    check_digest,
    damaged,
    read_json,
    whole_folder,
    write_json,
)
from cutaway.records import digest
from cutaway.settings import decode
from cutaway.text.tokenizer import Tokenizer

MODEL_TYPE = "cutaway-ngram"
_FILES = {CONFIG, WEIGHTS, SIDE, *TOKENIZER}


def save_ngram(folder: str | Path, model: NGram, tokenizer: Tokenizer | None = None) -> None:
    """Write the folder whole or not at all. A folder of this kind already there is replaced.

    Raises ModelError where something else is there, or where the tokenizer has more ids than the model; RunError
    where it cannot be written.
    """
    folder = Path(folder)
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise ModelError(f"a tokenizer of {tokenizer.vocab_size} ids does not fit a model of {model.vocab_size}",
                         where=folder, way_out="give the tokenizer of the tokens it was fitted to")
    with whole_folder(folder, _FILES) as temporary:
        _save_tensors(temporary / WEIGHTS, model.tensors())
        if tokenizer is not None:
            tokenizer.save(temporary)
        write_json(temporary / CONFIG, {"model_type": MODEL_TYPE, **model.config.model_dump(mode="json")})
        write_json(temporary / SIDE, {"format": 1, "family": MODEL_TYPE, "weights_sha256": digest(temporary / WEIGHTS),
                                      "tokenizer_sha256": None if tokenizer is None else tokenizer.digest})


def load_ngram(folder: str | Path, *, tokenizer: Tokenizer | None = None) -> NGram:
    """The model of a folder; ``load_tokenizer`` reads what it was saved with.

    Raises ModelError naming the file that is missing, damaged or of another kind, and, where ``tokenizer`` is given,
    for a model that was fitted with another one. Every index in it is checked before it is used.
    """
    folder = Path(folder)
    public, side = read_json(folder / CONFIG), read_json(folder / SIDE)
    if public.pop("model_type", None) != MODEL_TYPE:
        raise ModelError("is no n-gram model", where=folder / CONFIG, way_out="load it as what it is")
    try:
        config = decode(NGramConfig, public, where=str(folder / CONFIG))
    except SettingsError as error:
        raise ModelError(error.what, where=folder / CONFIG, way_out=AGAIN) from None
    if tokenizer is not None and side.get("tokenizer_sha256") not in (None, tokenizer.digest):
        raise ModelError("fitted with another tokenizer", where=folder,
                         way_out="use the tokenizer in the model's own folder")
    tensors = _tensors(folder / WEIGHTS, side.get("weights_sha256"))
    try:
        return NGram.from_tensors(config, tensors)
    except ModelError as error:
        raise ModelError(error.what, where=folder / WEIGHTS, way_out=AGAIN) from None


def _save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Straight to the disk: a large model is not held in memory twice."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"format": "np"})
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _tensors(path: Path, expected: object) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    check_digest(path, expected)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
