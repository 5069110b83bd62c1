"""``cutaway export``: a model in a form that others run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cutaway.cli.console import Json, note, result
from cutaway.errors import SettingsError

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def command(
    model: Annotated[str, typer.Argument(help="A name, a model or adapter folder or file, or a run (its "
                                               "furthest stage).")],
    *,
    to: Annotated[Literal["gguf", "safetensors"], typer.Option(help="GGUF for llama.cpp, or a folder of safetensors.")],
    quantize: Annotated[Kind, typer.Option(help="How numbers are kept; safetensors know f32, f16 and bf16.")] = "f16",
    out: Annotated[Path | None, typer.Option(help="The file or folder to write; beside you, of the model's name, "
                                                  "where not given.")] = None,
    json: Json = False,
) -> None:
    """Write a model for other programs: its weights, its tokenizer and its chat template. Adapters are merged into the
    model they stand beside."""
    import torch

    from cutaway.models.adapted import open_model, open_tokenizer
    from cutaway.models.adapter import merge
    from cutaway.models.folder import save_model
    from cutaway.models.gguf_write import write_gguf
    from cutaway.run.place import model_folder

    if to == "safetensors" and quantize not in _DTYPES:
        raise SettingsError(f"safetensors know no {quantize}",
                            way_out=f"choose one of {', '.join(_DTYPES)}, or --to gguf")
    folder = model_folder(model)
    target = out or Path(f"{Path(model).name}-{quantize}{'.gguf' if to == 'gguf' else ''}")
    if target.exists():
        raise SettingsError("is already there", where=target, way_out="name another with --out, or move it away")
    loaded, tokenizer = merge(open_model(folder)), open_tokenizer(folder)
    if to == "gguf":
        write_gguf(target, loaded, tokenizer, kind=quantize, name=Path(model).name)
    else:
        save_model(target, loaded, tokenizer, dtype=getattr(torch, _DTYPES[quantize]))
    size = target.stat().st_size if target.is_file() else sum(f.stat().st_size for f in target.rglob("*"))
    note(f"{size / 2**20:,.1f} MiB")
    result({"written": str(target), "bytes": size}, str(target), json=json)
