"""Any model folder as what a caller wants of it: something that writes, or something that classifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from cutaway.device import compute_dtype, keep_memory, pick, release_memory
from cutaway.errors import MachineError, ModelError
from cutaway.models.adapted import is_adapter, line_of, open_model
from cutaway.models.adapter import merge
from cutaway.models.bag_folder import load_bag
from cutaway.models.beside import Lost, with_adapters
from cutaway.models.classifier import Classifier
from cutaway.models.folder import GGUF_FILE, load_model, load_tokenizer, stored_small
from cutaway.models.heads import ClassHead
from cutaway.models.light import Precision, for_reading
from cutaway.models.model import Model
from cutaway.models.ngram import NGram
from cutaway.models.ngram_folder import MODEL_TYPE as NGRAM
from cutaway.models.ngram_folder import load_ngram
from cutaway.models.reading import TooLong
from cutaway.models.text_classifier import TextClassifier, TextEmbedder
from cutaway.models.whole import CONFIG, read_json
from cutaway.nn.linear import Linear, packs

Asked = Precision | Literal["stored"]  # stored: what is nearest to the file's numbers and fast here, see _stored
LAID_OUT = ("bfloat16", "int8", "int4")  # precisions whose weights are not those that were read
BAG = "bag"  # the kind in a bag of words' config.json


def open_writer(folder: str | Path, *, mapped: bool = False) -> Model | NGram:
    """The network, as it learns, or the n-gram model of a folder; adapters are merged into their base. ``mapped`` as
    ``load_model`` says. Raises ModelError where it writes no text, and says what it does."""
    folder = Path(folder)
    kind = _kind(folder)
    if kind == NGRAM:
        return load_ngram(folder)
    if kind == BAG:
        raise ModelError("gives labels, not text", where=folder, way_out="name a language model")
    model = open_model(folder, mapped=mapped and not is_adapter(folder))
    if is_adapter(folder):
        model = merge(model)
    gives = {"scalar": "scores", "classes": "labels", "vector": "vectors"}.get(model.head_kind)
    if gives is not None:
        raise ModelError(f"gives {gives}, not text", where=folder,
                         way_out="name a model with a token head, such as base")
    if not model.config.traits.generates:
        raise ModelError("an encoder writes no text: it fills masks (cutaway.generate.fill), and classifiers and "
                         "embeddings begin with it", where=folder, way_out="name a decoder or an encoder-decoder")
    return model


def open_language_model(folder: str | Path, *, precision: Asked = "float32", place: torch.device | None = None,
                        adapters: Mapping[str, str | Path] | None = None, lost: Lost | None = None) -> Model | NGram:
    """The same for reading and writing, with products of that ``precision``: it learns nothing and is not saved. Each
    request may have one of ``adapters``, folders of LoRA by name; ``lost`` as ``models.beside`` says."""
    folder = Path(folder)
    if precision in LAID_OUT and _kind(folder) == NGRAM:
        raise ModelError(f"counts, and has no products of {precision}", where=folder, way_out="leave it out")
    model = open_writer(folder, mapped=_on_cpu(place))
    if adapters and not isinstance(model, Model):
        error = ModelError("stands beside a model that counts, and that can have no adapters", way_out="leave it out")
        if lost is None:
            raise error
        for name in adapters:
            lost(name, error)
    if adapters and isinstance(model, Model):
        model = with_adapters(model, adapters, base=folder, lost=lost)
    return _light(model, folder, precision, place) if isinstance(model, Model) else model


def open_classifier(folder: str | Path) -> Classifier:
    """The bag of words or the network with a head of classes in a folder. Raises ModelError for any other model.

    A network averages the windows of a text longer than its context; ``read_in_windows`` counts such texts.
    """
    folder = Path(folder)
    kind = _kind(folder)
    if kind == BAG:
        return load_bag(folder)
    if kind == NGRAM:
        raise ModelError("is a language model and knows no labels", where=folder, way_out="name a classifier")
    model = load_model(folder)
    if not isinstance(model.head, ClassHead):
        raise ModelError("has no head of classes", where=folder, way_out="name a classifier")
    return TextClassifier(model.eval(), load_tokenizer(folder), too_long="windows")


def read_in_windows(classifier: Classifier, texts: Sequence[str]) -> int:
    """How many of the texts the classifier reads in windows and not whole; a bag of words has no context."""
    if not isinstance(classifier, TextClassifier) or classifier.too_long != "windows":
        return 0
    return len(classifier.too_long_of(texts))


def open_embedder(folder: str | Path, *, too_long: TooLong = "refuse", precision: Asked = "float32") -> TextEmbedder:
    """A model that gives vectors, with products of that ``precision``. Raises ModelError for any other."""
    folder = Path(folder)
    if _kind(folder) in (BAG, NGRAM):
        raise ModelError("gives no vectors", where=folder, way_out="name an encoder, such as all-minilm-l6-v2")
    model = load_model(folder, mapped=_on_cpu(None))
    if model.head_kind != "vector":
        raise ModelError(f"gives {model.head_kind}, not vectors", where=folder,
                         way_out="name a model that was made for them, such as all-minilm-l6-v2")
    return TextEmbedder(_light(model, folder, precision, None), load_tokenizer(folder), too_long)


def _light(model: Model, folder: Path, precision: Asked, place: torch.device | None) -> Model:
    place = torch.device("cpu") if place is None else place
    if place.type != "cpu" and precision in ("int8", "int4"):
        raise MachineError(f"products of {precision} run on the CPU, not on {place.type}", way_out="ask for bfloat16")
    if precision == "stored":
        precision = _stored(model, folder, place)
    light = for_reading(model.to(place), precision, in_place=True)
    release_memory()  # of the weights as they were read
    return light


def _on_cpu(place: torch.device | None) -> bool:
    """Whether weights can be read one after another as they are laid out. Memory that is freed is then kept: for the
    next weight, and later for what lies between two layers, a thousand times a second."""
    here = place is None or place.type == "cpu"
    if here:
        keep_memory()
    return here


def _stored(model: Model, folder: Path, place: torch.device) -> Precision:
    """int4 where a file holds the weights of all products in blocks of four bits, which are kept as they are; bfloat16
    where it holds its matrices in less than 32 bits otherwise and this machine is faster in it; else float32."""
    products = [part for part in model.modules() if isinstance(part, Linear)]
    four = bool(products) and all(part.in_blocks for part in products)
    if four and place.type == "cpu" and packs(torch.zeros(1, 2), "int4") is not None:
        return "int4"
    *_, root = line_of(folder)
    if not stored_small(root):
        return "float32"
    fast = ((place.type == "cpu" and packs(torch.zeros(1, 2), "bfloat16") is not None)
            or compute_dtype("auto", pick(str(place))) == torch.bfloat16)
    return "bfloat16" if fast else "float32"


def _kind(folder: Path) -> str:
    if folder.suffix == GGUF_FILE:
        return "gguf"
    if is_adapter(folder):
        return "adapter"
    public = read_json(folder / CONFIG)
    return str(public.get("model_type", public.get("kind")))
