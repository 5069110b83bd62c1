"""A model is a folder in the public format of its family: what is saved is the export, what others saved can be read.

config.json, model.safetensors, generation_config.json and the tokenizer's files; cutaway.json beside them holds what
the public format has no place for: the digests that tell a damaged file from a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ModelError, TokenizerError
from cutaway.models import sentence
from cutaway.models.families import bert, gemma, gpt2, llama, modernbert, own, t5
from cutaway.models.families.family import Family, Form, described
from cutaway.models.heads import Head, Vector, kind_of
from cutaway.models.model import Architecture, Model
from cutaway.models.stored import Tensors, filled, of_folder
from cutaway.models.tensors_file import write_tensors
from cutaway.models.whole import CONFIG, SIDE, TOKENIZER, WEIGHTS, read_json, whole_folder, write_json
from cutaway.text import tokenizer as tokenizers
from cutaway.text.tokenizer import Tokenizer

GGUF_FILE, LLAMA2C_FILE = ".gguf", ".bin"
_FAMILIES: dict[str, Any] = {
    **dict.fromkeys(llama.STEMS, llama), "gemma3_text": gemma, "gpt2": gpt2, "bert": bert, "roberta": bert,
    "modernbert": modernbert, "t5": t5, "own": own}
# what a public format has no place for and the side file therefore says
_SIDE_SETTINGS = ("tie_embeddings", "dropout")
_OURS = {CONFIG, WEIGHTS, SIDE, "generation_config.json", *TOKENIZER, *sentence.FILES}


def save_model(folder: str | Path, model: Model, tokenizer: Tokenizer | None = None, *,
               dtype: torch.dtype = torch.float32) -> None:
    """Write the folder whole or not at all; weights in ``dtype``. A model folder already there is replaced.

    Raises ModelError where something else is there, or where the tokenizer has more ids than the model; RunError
    where it cannot be written.
    """
    folder = Path(folder)
    if tokenizer is not None:
        refuse_larger(tokenizer, model, folder)
    with whole_folder(folder, _OURS) as temporary:
        _fill(temporary, model, tokenizer, dtype)


def refuse_larger(tokenizer: Tokenizer, model: Model, where: Path) -> None:
    """Raises ModelError for a tokenizer that has ids which the model does not."""
    if tokenizer.vocab_size > model.vocab_size:
        raise ModelError(f"a tokenizer of {tokenizer.vocab_size} ids does not fit a model of {model.vocab_size}",
                         where=where, way_out="give the tokenizer it was trained with")


def _fill(folder: Path, model: Model, tokenizer: Tokenizer | None, dtype: torch.dtype) -> None:
    head, name = model.head_spec, str(dtype).removeprefix("torch.")
    control: dict[str, int] = {}
    if tokenizer is not None:
        control = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id}
    public = _FAMILIES[model.config.traits.family].public_config(model.config, head, dtype=name, control=control)
    if tokenizer is not None:
        tokenizer.save(folder)
    digest = write_tensors(folder / WEIGHTS, public_tensors(model), dtype)
    write_json(folder / CONFIG, public)
    if model.config.traits.generates:
        ids = {k: v for k, v in public.items() if k.endswith("token_id")} if control else {}
        write_json(folder / "generation_config.json", {"do_sample": head == "tokens", **ids})
    if isinstance(head, Vector) and model.config.traits.family != "own":
        sentence.write_modules(folder, head, model.pooling, width=model.config.hidden_size,
                               context=model.context_length)
    write_json(folder / SIDE, {"format": 1, "family": model.config.traits.family, "head": kind_of(head),
                           "config": model.config.model_dump(), "weights_sha256": digest,
                           "tokenizer_sha256": None if tokenizer is None else tokenizer.digest})


def public_tensors(model: Model) -> dict[str, Tensor]:
    """The weights under their public names, on the CPU."""
    mine = {k: v.detach().cpu() for k, v in model.named_parameters(remove_duplicate=False)}
    family, out = _FAMILIES[model.config.traits.family], dict[str, Tensor]()
    for ours, public in family.names(model.config, model.head_spec):
        rows = family.rows(ours, model.config)
        parts = (mine[ours],) if rows is None else mine[ours].split(rows)
        forms = family.forms(ours, model.config) or (Form(),) * len(parts)
        out.update((name, _public(part, form)) for name, part, form in zip(public, parts, forms, strict=True))
    return out


def _public(part: Tensor, form: Form) -> Tensor:
    part = part.T if form.turned else part
    part = part if form.scale == 1 else part * form.scale
    part = part if form.shift == 0 else part - form.shift
    return (torch.cat((part.new_zeros(form.skip, *part.shape[1:]), part)) if form.skip else part).contiguous()


def load_model(folder: str | Path, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None,
               mapped: bool = False) -> Model:
    """The model of a folder, ours or a public one of the family; ``dtype`` is its arithmetic, weights are float32.

    Those that lie in the file as the model has them are the file, mapped: what changes them changes a private copy of
    the page, never the file. A file that is replaced (as ``save_model`` does) stays what it was to who has it open; one
    that is overwritten in place does not.

    With ``mapped`` nothing is the file; weights of products stay in it until they are asked for. That is for one who
    lays them out anew (``models.light``): such a model computes nothing.

    Raises ModelError naming the file that is missing, damaged or of another kind, and, where ``tokenizer`` is given,
    for a model that was made with another one.
    """
    folder = Path(folder)
    if folder.suffix in (GGUF_FILE, LLAMA2C_FILE):
        return _load_file(folder, dtype, mapped=mapped)
    public = read_json(folder / CONFIG)
    side = read_json(folder / SIDE) if (folder / SIDE).exists() else {}
    family = family_of(public, where=folder / CONFIG)
    config, head = described(family, public, folder / CONFIG)
    head = sentence.vector_of(folder) or head
    config = _with_side(config, head, side)
    if tokenizer is not None and side.get("tokenizer_sha256") not in (None, tokenizer.digest):
        raise ModelError(f"made with another tokenizer ({side['tokenizer_sha256'][:12]}, this one is "
                         f"{tokenizer.digest[:12]})", where=folder,
                         way_out="use the tokenizer in the model's own folder")
    return filled(config, head, of_folder(folder, side.get("weights_sha256")), family, dtype, folder / WEIGHTS,
                  mapped=mapped)


def stored_small(folder: str | Path) -> bool:
    """Whether a model's largest tensor is stored in less than 32 bits a number."""
    return max(_tensors(Path(folder)).values(), key=lambda t: math.prod(t.shape)).small


def count_stored(folder: str | Path) -> int:
    """How many numbers a model's tensors have; none of them is read."""
    return sum(math.prod(t.shape) for t in _tensors(Path(folder)).values())


def _tensors(folder: Path) -> Tensors:
    return _of_file(folder)[1] if folder.suffix in (GGUF_FILE, LLAMA2C_FILE) else of_folder(folder, None)


def _of_file(path: Path) -> tuple[Mapping[str, Any], Tensors, Vector | None]:
    """What a GGUF file, or a checkpoint of llama2.c, is and holds, and the vectors that it is for."""
    if path.suffix == LLAMA2C_FILE:
        from cutaway.models.llama2c import read

        return *read(path), None
    from cutaway.models import gguf
    from cutaway.models.gguf_file import read_gguf

    file = read_gguf(path)
    public = gguf.public_config(file)
    return public, gguf.public_tensors(file, public), gguf.vector_of(file)


def _load_file(path: Path, dtype: torch.dtype, *, mapped: bool) -> Model:
    public, tensors, vector = _of_file(path)
    family = family_of(public, where=path)
    config, head = described(family, public, path)
    return filled(config, vector or head, tensors, family, dtype, path, mapped=mapped)


def family_of(public: Mapping[str, Any], *, where: object) -> Family:
    """The format that a config.json is in. Raises ModelError with those there are."""
    name = str(public.get("model_type"))
    family: Family | None = _FAMILIES.get("own" if name.startswith("cutaway-") else name)
    if family is None or name == "own":
        raise ModelError(f"model_type {name!r} is unknown", where=where,
                         way_out=f"supported are {', '.join(n for n in _FAMILIES if n != 'own')} and Cutaway's own")
    return family


def family_for(model: Model) -> Family:
    """The format that a model is saved in."""
    family: Family = _FAMILIES[model.config.traits.family]
    return family


def _with_side(config: Architecture, head: Head, side: Mapping[str, Any]) -> Any:
    known = side.get("config") or {}
    update = {k: known[k] for k in _SIDE_SETTINGS if k in known and (k != "tie_embeddings" or head != "tokens")}
    return config.model_copy(update=update)  # type: ignore[attr-defined]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The folder's tokenizer. Raises TokenizerError if it is damaged or not the one the model was saved with."""
    folder = Path(folder)
    if folder.suffix == GGUF_FILE:
        from cutaway.models.gguf_file import read_gguf
        from cutaway.models.gguf_tokenizer import tokenizer

        return tokenizer(read_gguf(folder))
    if folder.suffix == LLAMA2C_FILE:
        from cutaway.models import llama2c

        return llama2c.tokenizer(folder)
    found = tokenizers.load(folder)
    side = read_json(folder / SIDE) if (folder / SIDE).exists() else {}
    if side.get("tokenizer_sha256") not in (None, found.digest):
        raise TokenizerError("not the tokenizer this model was made with", where=folder / "tokenizer.json",
                             way_out="restore the folder from a copy")
    return found
