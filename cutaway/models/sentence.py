"""What sentence-transformers writes beside a model: how a text's vector is made of its tokens' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.errors import FOLDER_AGAIN, ModelError
from cutaway.models.heads import Pooling, Vector
from cutaway.models.whole import read_json, read_list, write_json

MODULES, POOLING, LIMIT = "modules.json", "1_Pooling", "sentence_bert_config.json"
FILES = (MODULES, POOLING, "2_Normalize", LIMIT, "config_sentence_transformers.json")
_MODES: dict[str, Pooling] = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean",
                              "pooling_mode_max_tokens": "max", "pooling_mode_lasttoken": "last"}
_NAMES: dict[str, Pooling] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}


def vector_of(folder: Path) -> Vector | None:
    """The vector that a folder's modules make, or None where it has no such file. Raises ModelError for modules that
    our model does not compute."""
    if not (folder / MODULES).exists():
        return None
    modules = [m if isinstance(m, dict) else {} for m in read_list(folder / MODULES)]
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ModelError(f"its vectors are made by {', '.join(kinds) or 'nothing'}", where=folder / MODULES,
                         way_out="supported are Transformer, Pooling and, behind them, Normalize")
    paths = [str(m.get("path", "")) for m in modules]
    if Path(paths[1]).name != paths[1]:
        raise ModelError("names a file outside the folder", where=folder / MODULES, way_out=FOLDER_AGAIN)
    return Vector(_pooling(read_json(folder / paths[1] / "config.json"), folder), unit=len(kinds) == 3)


def _pooling(tree: dict[str, Any], folder: Path) -> Pooling:
    named = str(tree.get("pooling_mode"))
    chosen = [_NAMES[named]] if named in _NAMES else [how for key, how in _MODES.items() if tree.get(key)]
    other = [key for key, value in tree.items() if key.startswith("pooling_mode_") and value and key not in _MODES]
    if len(chosen) != 1 or other:
        raise ModelError(f"pools its tokens by {', '.join(other) or 'several ways at once'}", where=folder / POOLING,
                         way_out="supported is one of cls, mean, max and last token")
    return chosen[0]


def write_modules(folder: Path, vector: Vector, pooling: Pooling, *, width: int, context: int) -> None:
    """The files that make a saved model one that sentence-transformers opens."""
    kinds = [("Transformer", ""), ("Pooling", POOLING), *([("Normalize", "2_Normalize")] if vector.unit else [])]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (kind, path) in enumerate(kinds)]
    for _, path in kinds[1:]:
        (folder / path).mkdir()
    write_json(folder / MODULES, modules)
    write_json(folder / POOLING / "config.json", {"word_embedding_dimension": width,
                                                  **{key: how == pooling for key, how in _MODES.items()}})
    write_json(folder / LIMIT, {"max_seq_length": context, "do_lower_case": False})
