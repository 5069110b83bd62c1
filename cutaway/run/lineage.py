"""Lineage: what a run's models came from, by hash: text, tokenizer, parents, versions, machine (after data cards)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cutaway.data.shards import Manifest
from cutaway.device import Machine
from cutaway.errors import RunError
from cutaway.records import digest, environment
from cutaway.run.folder import Run


def begin(run: Run, machine: Machine) -> None:
    """Write what is known before anything was learned; a resumed run adds the session's machine to the list."""
    lineage = run.read_json("lineage.json") or {"run": run.name, "sessions": [], "models": {}}
    lineage["sessions"].append({**environment(), "hardware": asdict(machine)})
    run.write_json("lineage.json", lineage)


def add_base(run: Run, place: Path) -> None:
    """Record the model that a run begins with. Raises RunError where it is no longer the one it began with."""
    lineage = run.read_json("lineage.json") or {}
    found = weights_digest(place)
    known = lineage["models"].setdefault("base", {"sha256": found, "steps": 0, "parent": str(place)})
    if known["sha256"] != found:
        raise RunError(f"the model that it began with has changed: {place} is {found[:12]}, and was "
                       f"{known['sha256'][:12]}", where=run.folder,
                       way_out="put the former one back, or begin a new run")
    run.write_json("lineage.json", lineage)


def weights_digest(place: Path) -> str:
    """One hash of a model's weights, in one file or in several, or of a folder of adapters."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    return digest(files[0]) if len(files) == 1 else digest(" ".join(digest(f) for f in files).encode())


def add_data(run: Run, manifest: Manifest, tokenizer: dict[str, Any]) -> None:
    """Record the text's and the tokenizer's hashes."""
    lineage = run.read_json("lineage.json") or {}
    splits = {name: {"documents": s.documents, "tokens": s.tokens, "bytes": s.bytes, "sha256": s.content}
              for name, s in manifest.splits.items()}
    lineage["tokenizer"] = tokenizer
    lineage["data"] = {"settings": manifest.settings, "splits": splits, "encoder": manifest.encoder,
                       "skipped": manifest.skipped["counts"], "note": manifest.note}
    run.write_json("lineage.json", lineage)


def add_model(run: Run, name: str, steps: int) -> None:
    """Record a finished model: the hash of its weights, how many steps made it, and from what."""
    lineage = run.read_json("lineage.json") or {}
    tuned = run.recipe.tuned
    parents = {"base": "random weights", "finetuned": "base", "reward": tuned, "aligned": tuned}
    lineage["models"][name] = {"sha256": weights_digest(run.model(name)), "steps": steps, "parent": parents[name]}
    lineage["recipe_sha256"] = digest(run.folder / "recipe.toml")
    run.write_json("lineage.json", lineage)
