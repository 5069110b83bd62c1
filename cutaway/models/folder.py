"""A model is a folder in the public format of its family: what is saved is the export, what others saved can be read.

config.json, model.safetensors, generation_config.json and the tokenizer's files; cutaway.json beside them holds what
the public format has no place for: the digests that tell a damaged file from a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ModelError, TokenizerError
from cutaway.models import sentence
from cutaway.models.families import bert, gemma, gpt2, llama, modernbert, own, t5
from cutaway.models.families.family import Family, Form
from cutaway.models.heads import Head, Vector, kind_of
from cutaway.models.model import Architecture, Model, blank
from cutaway.models.transformer import TransformerConfig
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
from cutaway.records import atomic_write, digest
from cutaway.text import tokenizer as tokenizers
from cutaway.text.tokenizer import Tokenizer

INDEX, GGUF_FILE, LLAMA2C_FILE = "model.safetensors.index.json", ".gguf", ".bin"
Tensors = dict[str, Callable[[], Tensor]]
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
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise ModelError(f"a tokenizer of {tokenizer.vocab_size} ids does not fit a model of {model.vocab_size}",
                         where=folder, way_out="give the tokenizer it was trained with")
    with whole_folder(folder, _OURS) as temporary:
        _fill(temporary, model, tokenizer, dtype)


def _fill(folder: Path, model: Model, tokenizer: Tokenizer | None, dtype: torch.dtype) -> None:
    from safetensors.torch import save

    head, name = model.head_spec, str(dtype).removeprefix("torch.")
    control: dict[str, int] = {}
    if tokenizer is not None:
        control = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "end": tokenizer.end_id, "pad": tokenizer.pad_id}
    public = _FAMILIES[model.config.traits.family].public_config(model.config, head, dtype=name, control=control)
    data = save({k: v.to(dtype) for k, v in public_tensors(model).items()}, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
    atomic_write(folder / WEIGHTS, data)
    write_json(folder / CONFIG, public)
    if model.config.traits.generates:
        ids = {k: v for k, v in public.items() if k.endswith("token_id")} if control else {}
        write_json(folder / "generation_config.json", {"do_sample": head == "tokens", **ids})
    if isinstance(head, Vector) and model.config.traits.family != "own":
        sentence.write_modules(folder, head, model.pooling, width=model.config.hidden_size,
                               context=model.context_length)
    write_json(folder / SIDE, {"format": 1, "family": model.config.traits.family, "head": kind_of(head),
                           "config": model.config.model_dump(), "weights_sha256": digest(data),
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


def load_model(folder: str | Path, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None) -> Model:
    """The model of a folder, ours or a public one of the family; ``dtype`` is its arithmetic, weights are float32.

    Raises ModelError naming the file that is missing, damaged or of another kind, and, where ``tokenizer`` is given,
    for a model that was made with another one.
    """
    folder = Path(folder)
    if folder.suffix in (GGUF_FILE, LLAMA2C_FILE):
        return _load_file(folder, dtype)
    public = read_json(folder / CONFIG)
    side = read_json(folder / SIDE) if (folder / SIDE).exists() else {}
    family = family_of(public, where=folder / CONFIG)
    config, head = family.our_config(public, where=folder / CONFIG)
    head = sentence.vector_of(folder) or head
    config = _with_side(config, head, side)
    if tokenizer is not None and side.get("tokenizer_sha256") not in (None, tokenizer.digest):
        raise ModelError(f"made with another tokenizer ({side['tokenizer_sha256'][:12]}, this one is "
                         f"{tokenizer.digest[:12]})", where=folder,
                         way_out="use the tokenizer in the model's own folder")
    return _filled(config, head, _tensors(folder, side), family, dtype, folder / WEIGHTS)


def _load_file(path: Path, dtype: torch.dtype) -> Model:
    """The model of a GGUF file, or of a checkpoint of llama2.c."""
    if path.suffix == LLAMA2C_FILE:
        from cutaway.models.llama2c import read

        public, tensors = read(path)
    else:
        from cutaway.models import gguf
        from cutaway.models.gguf_file import read_gguf

        file = read_gguf(path)
        public = gguf.public_config(file)
        tensors = gguf.public_tensors(file, public)
    family = family_of(public, where=path)
    config, head = family.our_config(public, where=path)
    return _filled(config, head, tensors, family, dtype, path)


def _filled(config: Any, head: Head, tensors: Tensors, family: Family, dtype: torch.dtype, where: Path) -> Model:
    config = _as_written(config, head, tensors, family)
    model = blank(config, head=head, compute_dtype=dtype)
    _assign(model, tensors, family, where)
    return model


def _as_written(config: Any, head: Head, tensors: Tensors, family: Family) -> Any:
    """Untied where the file holds a head of other numbers than the embedding: transformers reads it so too."""
    if head != "tokens" or not config.tie_embeddings or not isinstance(config, TransformerConfig):
        return config
    apart = config.model_copy(update={"tie_embeddings": False})
    known = {ours.rpartition("embedding")[1] or ours: public[0] for ours, public in family.names(apart, head)
             if ours == "head.weight" or ours.endswith(".embedding.weight")}
    written, embedding = tensors.get(known["head.weight"]), tensors.get(known["embedding"])
    if written is None or embedding is None or torch.equal(written(), embedding()):
        return config
    if apart.traits.head_scale == config.traits.head_scale:
        return apart
    return apart.model_copy(update={"variant": apart.made.model_copy(update={"head_scale": config.traits.head_scale})})


def family_of(public: Mapping[str, Any], *, where: object) -> Family:
    """The format that a config.json is in. Raises ModelError with those there are."""
    name = str(public.get("model_type"))
    family: Family | None = _FAMILIES.get("own" if name.startswith("cutaway-") else name)
    if family is None or name == "own":
        raise ModelError(f"model_type {name!r} is unknown", where=where,
                         way_out=f"supported are {', '.join(n for n in _FAMILIES if n != 'own')} and Cutaway's own")
    return family


def _with_side(config: Architecture, head: Head, side: Mapping[str, Any]) -> Any:
    known = side.get("config") or {}
    update = {k: known[k] for k in _SIDE_SETTINGS if k in known and (k != "tie_embeddings" or head != "tokens")}
    return config.model_copy(update=update)  # type: ignore[attr-defined]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The folder's tokenizer. Raises TokenizerError if it is damaged or not the one the model was saved with."""
    folder = Path(folder)
    if folder.suffix == GGUF_FILE:
        from cutaway.models import gguf
        from cutaway.models.gguf_file import read_gguf

        return gguf.tokenizer(read_gguf(folder))
    if folder.suffix == LLAMA2C_FILE:
        from cutaway.models import llama2c

        return llama2c.tokenizer(folder)
    found = tokenizers.load(folder)
    side = read_json(folder / SIDE) if (folder / SIDE).exists() else {}
    if side.get("tokenizer_sha256") not in (None, found.digest):
        raise TokenizerError("not the tokenizer this model was made with", where=folder / "tokenizer.json",
                             way_out="restore the folder from a copy")
    return found


def _tensors(folder: Path, side: Mapping[str, Any]) -> Tensors:
    """All tensors of a folder, in one file or, as large public models are, in several; each is read when called for."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return _tensor_file(folder / WEIGHTS, side.get("weights_sha256"))
    files = set(read_json(folder / INDEX).get("weight_map", {}).values())
    if any(Path(str(name)).name != name for name in files):
        raise ModelError("names a file outside the folder", where=folder / INDEX, way_out=AGAIN)
    return {k: v for name in sorted(files) for k, v in _tensor_file(folder / name, None).items()}


def _tensor_file(path: Path, expected: str | None) -> Tensors:
    from safetensors import SafetensorError, safe_open

    if expected is not None:
        check_digest(path, expected)
    try:
        file: Any = safe_open(path, "pt")
        return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise ModelError("no such file", where=path, way_out="name a folder that holds a model") from None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from None


def _assign(model: Model, tensors: Tensors, family: Family, where: Path) -> None:
    mine = dict(model.named_parameters(remove_duplicate=False))
    for ours, public in family.names(model.config, model.head_spec):
        missing = [name for name in public if name not in tensors]
        if missing:
            raise ModelError(f"lacks the tensor {missing[0]}", where=where, way_out=AGAIN)
        rows = family.rows(ours, model.config) or (mine[ours].shape[0],)
        forms = family.forms(ours, model.config) or (Form(),) * len(rows)
        for name, part, form in zip(public, mine[ours].detach().split(rows), forms, strict=True):
            found = tensors.pop(name)()
            wanted = tuple(part.T.shape if form.turned else (len(part) + form.skip, *part.shape[1:]))
            if tuple(found.shape) != wanted or not found.is_floating_point():
                raise ModelError(f"{name} is {found.dtype} {tuple(found.shape)}, and config.json says {wanted}",
                                 where=where, way_out=AGAIN)
            part.copy_(found.T if form.turned else found[form.skip :]).add_(form.shift).div_(form.scale)
    _refuse_left(model, tensors, family, where)


def _refuse_left(model: Model, left: Tensors, family: Family, where: Path) -> None:
    """Nothing is ignored but what says nothing new: a tied head written out, and what the family says is not read."""
    for name, tensor in left.items():
        same = name in family.REPEATS and torch.equal(tensor().float(), model.backbone.embedding.weight.detach())
        if not same and not name.endswith(family.UNREAD or ("\0",)):
            raise ModelError(f"holds the tensor {name}, which the configuration has no place for",
                             where=where, way_out="check config.json")
