"""Reading texts whole with a network: tokens in batches of about one length, long texts in windows, order kept.

The caller's order never shows: what a text gives does not depend on what else was asked (up to rounding: batches of
other widths add up in another order, 1e-5 in float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cutaway.batch import beside, end_to_end, whole
from cutaway.errors import RequestError
from cutaway.models.model import Model
from cutaway.text.tokenizer import Tokenizer

Ids = NDArray[np.int64]
TooLong = Literal["refuse", "cut", "windows"]
_FEW = 64  # texts that are encoded one by one: looking whether the fast encoder agrees would take longer
PLACES, ROWS = 16_384, 256
TOKENS = 2_048  # behind one another: what lies between two layers then stays in a core's cache


def framed_rows(texts: Sequence[str], tokenizer: Tokenizer) -> list[Ids]:
    """The ids of each text between beginning and end."""
    if len(texts) <= _FEW:
        encoded: list[Ids] = [np.array(tokenizer.encode(text), np.int64) for text in texts]
    else:
        encoded = [ids.astype(np.int64) for ids in tokenizer.encode_documents(texts)]
    return [np.concatenate([tokenizer.begin_ids, ids, tokenizer.finish_ids]).astype(np.int64) for ids in encoded]


def longer(rows: Sequence[Ids], context: int) -> list[int]:
    """The numbers of the rows that do not fit ``context``."""
    return [i for i, row in enumerate(rows) if len(row) > context]


def fitted(rows: Sequence[Ids], context: int, *, too_long: TooLong) -> list[list[Ids]]:
    """What is read of each row: itself, or where it is too long its head ("cut") or all of it in even windows
    ("windows"), each framed as the row was. Raises RequestError with both numbers otherwise."""
    if too_long == "refuse" and (found := longer(rows, context)):
        most = max(len(rows[i]) for i in found)
        raise RequestError(f"{len(found)} of {len(rows)} texts are longer than the context of {context} tokens, the "
                           f"longest has {most}", way_out="shorten them, or ask for too_long = cut or windows")
    return [_windows(row, context, cut=too_long == "cut") for row in rows]


def outputs(model: Model, rows: Sequence[Ids], *, pad_id: int, bos_id: int) -> NDArray[np.float64]:
    """What the model's head of classes or vectors gives for each row, ``(N, W)``; without gradient, in batches of
    rows of about one length, at most ``ROWS`` of them and ``PLACES`` tokens, or behind one another."""
    model.eval()
    out: NDArray[np.float64] = np.zeros((0, 0))
    with torch.no_grad():
        packs = bool(model.config.traits.packs)
        for numbers in _batches([len(row) for row in rows], padded=not packs):
            mine = [rows[i] for i in numbers]
            batch = end_to_end(mine) if packs else whole(mine, pad_id=pad_id)
            batch = (beside(batch, bos_id) if model.reads_source else batch).to(model.device)
            given = model(batch).double().cpu().numpy()
            if not out.size:
                out = np.zeros((len(rows), given.shape[1]))
            out[numbers] = given
    return out


def averaged(model: Model, texts: Sequence[str], tokenizer: Tokenizer, *, too_long: TooLong) -> NDArray[np.float64]:
    """``outputs`` of each text; of one in windows their mean, each weighed by its tokens, ``(N, W)``."""
    return averaged_rows(model, framed_rows(texts, tokenizer), tokenizer, too_long=too_long)


def averaged_rows(model: Model, rows: Sequence[Ids], tokenizer: Tokenizer, *, too_long: TooLong) -> NDArray[np.float64]:
    """The same of texts that are ids already, framed."""
    parts = fitted(rows, model.context_length, too_long=too_long)
    given = outputs(model, [part for row in parts for part in row], pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id)
    if len(given) == len(parts):
        return given
    weights = np.array([len(part) for row in parts for part in row], np.float64)[:, None]
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    return np.asarray(np.add.reduceat(given * weights, starts) / np.add.reduceat(weights, starts), np.float64)


def _windows(row: Ids, context: int, *, cut: bool) -> list[Ids]:
    if len(row) <= context:
        return [row]
    inside, room = row[1:-1], context - 2
    count = 1 if cut else -(-len(inside) // room)
    parts = [inside[:room]] if cut else np.array_split(inside, count)
    return [np.concatenate([row[:1], part, row[-1:]]) for part in parts]


def _batches(lengths: Sequence[int], *, padded: bool) -> Iterator[list[int]]:
    """Numbers of rows for each batch, from short to long: at most ``PLACES`` tokens with the padding that all but the
    longest get, or ``TOKENS`` without any."""
    batch: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        tokens = (len(batch) + 1) * lengths[i] if padded else tokens + lengths[i]
        if batch and (len(batch) == ROWS or tokens > (PLACES if padded else TOKENS)):
            yield batch
            batch, tokens = [], lengths[i]
        batch.append(i)
    if batch:
        yield batch
