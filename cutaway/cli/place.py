"""Which model a person means: a model folder, or a run, whose furthest stage is taken."""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import RunError

STAGES = ("aligned", "finetuned", "base")


def model_folder(name: str | Path) -> Path:
    """The folder itself if it holds a model or a tokenizer, else the furthest model of the run of that name or path.

    Raises RunError if there is no such folder or run, or if the run has no model yet.
    """
    path = Path(name)
    if any((path / file).is_file() for file in ("config.json", "tokenizer.json")):
        return path
    from cutaway.run.folder import open_run

    run = open_run(name)
    for stage in STAGES:
        if run.model(stage).is_dir():
            return run.model(stage)
    raise RunError("has no model yet", where=run.folder, way_out=f"go on with it: cutaway resume {run.folder}")
