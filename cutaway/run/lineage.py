"""Lineage: what a run's models came from, by hash: text, tokenizer, parents, versions, machine (after data cards)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cutaway.data.shards import Manifest
from cutaway.device import Machine
from cutaway.records import digest, environment
from cutaway.run.folder import Run

PARENTS = {"base": "random weights", "finetuned": "base", "reward": "finetuned", "aligned": "finetuned"}


def begin(run: Run, machine: Machine) -> None:
    """Write what is known before anything was learned; a resumed run adds the session's machine to the list."""
    lineage = run.read_json("lineage.json") or {"run": run.name, "sessions": [], "models": {}}
    lineage["sessions"].append({**environment(), "hardware": asdict(machine)})
    run.write_json("lineage.json", lineage)


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
    lineage["models"][name] = {"sha256": digest(run.model(name) / "model.safetensors"), "steps": steps,
                               "parent": PARENTS[name]}
    lineage["recipe_sha256"] = digest(run.folder / "recipe.toml")
    run.write_json("lineage.json", lineage)
