"""A bag on disk: config.json, vocabulary.json and model.safetensors; no pickle, no object of scikit-learn.

What is loaded scores bit for bit as what was saved, and nothing is believed unchecked: shapes, bounds, finite numbers,
and the digests in config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import ModelError
from cutaway.models.bag import Bag, BagConfig
from cutaway.models.features import Block, Grams, Hand, HandMade
from cutaway.models.whole import AGAIN, CONFIG, WEIGHTS, read_bytes, whole_folder
from cutaway.records import atomic_write, digest
from cutaway.settings import decode

VOCABULARY = "vocabulary.json"
Arrays = dict[str, NDArray[np.float64]]


def save_bag(folder: str | Path, bag: Bag) -> None:
    """Write the folder whole or not at all; a bag already there is replaced.

    Raises ModelError where something else is there, RunError where it cannot be written.
    """
    with whole_folder(Path(folder), {CONFIG, VOCABULARY, WEIGHTS}) as temporary:
        _fill(temporary, bag)


def _fill(folder: Path, bag: Bag) -> None:
    from safetensors.numpy import save

    arrays: Arrays = {"weights": bag.weights, "intercept": bag.intercept,
                      "scale": np.array([bag.slope, bag.offset])}
    for i, block in enumerate(bag.blocks):
        if isinstance(block, Hand):
            arrays |= {f"means.{i}": block.means, f"deviations.{i}": block.deviations}
        elif block.idf is not None:
            arrays[f"idf.{i}"] = block.idf
    weights = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    terms = json.dumps([list(b.terms) if isinstance(b, Grams) else None for b in bag.blocks]).encode()
    atomic_write(folder / WEIGHTS, weights)
    atomic_write(folder / VOCABULARY, terms)
    atomic_write(folder / CONFIG, json.dumps({
        "model_type": "bag", "format": 1, "config": bag.config.model_dump(mode="json"), "labels": bag.labels,
        "multi_label": bag.multi_label, "notes": bag.notes, "weights_sha256": digest(weights),
        "vocabulary_sha256": digest(terms)}, indent=1) + "\n")


def load_bag(folder: str | Path) -> Bag:
    """The bag of a folder. Raises ModelError naming the file that is missing, damaged, or does not fit the others."""
    folder = Path(folder)
    public = _config(folder / CONFIG)
    config = decode(BagConfig, public["config"], where=folder / CONFIG)
    terms = json.loads(read_bytes(folder / VOCABULARY, public["vocabulary_sha256"]))
    arrays = _arrays(folder / WEIGHTS, public["weights_sha256"])
    if not isinstance(terms, list) or len(terms) != len(config.features):
        raise ModelError(f"is not the vocabulary of {len(config.features)} blocks", where=folder / VOCABULARY,
                         way_out=AGAIN)
    blocks = tuple(_block(i, config, terms[i], arrays, folder) for i in range(len(terms)))
    size = sum(len(b.names) for b in blocks)
    labels, multi = tuple(public["labels"]), public["multi_label"]
    columns = 1 if len(labels) == 2 and not multi else len(labels)
    weights = _taken(arrays, "weights", (size, columns), folder)
    intercept, scale = _taken(arrays, "intercept", (columns,), folder), _taken(arrays, "scale", (2,), folder)
    if arrays or scale[0] <= 0:
        raise ModelError(f"holds the tensor {min(arrays)}, which config.json has no place for" if arrays
                         else f"a slope of {scale[0]} turns scores round", where=folder / WEIGHTS, way_out=AGAIN)
    return Bag(config, labels, multi, blocks, weights, intercept, float(scale[0]), float(scale[1]),
               tuple(public["notes"]))


def _config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path, None))
    except ValueError as error:
        raise ModelError(f"damaged ({error})", where=path, way_out=AGAIN) from None
    if not isinstance(value, dict) or value.get("model_type") != "bag":
        raise ModelError("is not the config of a bag", where=path, way_out="name a folder that save_bag has written")
    wanted: dict[str, type] = {"format": int, "config": dict, "labels": list, "multi_label": bool, "notes": list,
                               "weights_sha256": str, "vocabulary_sha256": str}
    for name, kind in wanted.items():
        if not isinstance(value.get(name), kind):
            raise ModelError(f"{name} is missing or no {kind.__name__}", where=path, way_out=AGAIN)
    if value["format"] != 1:
        raise ModelError(f"format {value['format']} is not known", where=path, way_out="update the package")
    labels = value["labels"]
    if not all(isinstance(x, str) for x in (*labels, *value["notes"])) or labels != sorted(set(labels)) or not labels:
        raise ModelError("labels are no sorted list of distinct names", where=path, way_out=AGAIN)
    return value


def _arrays(path: Path, expected: str) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(read_bytes(path, expected))
    except (SafetensorError, ValueError, KeyError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"damaged: not a safetensors file ({error})", where=path, way_out=AGAIN) from None
    return arrays


def _taken(arrays: Arrays, name: str, shape: tuple[int, ...], folder: Path) -> NDArray[np.float64]:
    """The array out of ``arrays``, with the shape it must have and nothing but finite numbers in it."""
    found = arrays.pop(name, None)
    if found is None:
        raise ModelError(f"lacks the tensor {name}", where=folder / WEIGHTS, way_out=AGAIN)
    if found.shape != shape or found.dtype != np.float64 or not np.isfinite(found).all():
        raise ModelError(f"{name} is {found.dtype} {found.shape}, and must be finite float64 {shape}",
                         where=folder / WEIGHTS, way_out=AGAIN)
    return found


def _block(i: int, config: BagConfig, terms: Any, arrays: Arrays, folder: Path) -> Block:
    feature = config.features[i]
    if isinstance(feature, HandMade):
        count = (len(feature.names),)
        means, deviations = (_taken(arrays, f"{n}.{i}", count, folder) for n in ("means", "deviations"))
        if deviations.min() <= 0:
            raise ModelError("a standard deviation is not above 0", where=folder / WEIGHTS, way_out=AGAIN)
        return Hand(feature, means, deviations)
    if not isinstance(terms, list) or not terms or not all(isinstance(t, str) for t in terms) or (
            len(set(terms)) != len(terms)):
        raise ModelError(f"block {i} is no list of distinct n-grams", where=folder / VOCABULARY, way_out=AGAIN)
    idf = _taken(arrays, f"idf.{i}", (len(terms),), folder) if feature.weight in ("tfidf", "sublinear") else None
    if idf is not None and idf.min() <= 0:
        raise ModelError("an idf is not above 0", where=folder / WEIGHTS, way_out=AGAIN)
    return Grams(feature, tuple(terms), idf)
