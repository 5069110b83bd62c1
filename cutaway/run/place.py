"""Which model a person means: a model folder or file, one that was fetched under a name, or a run, of which one verb
takes the furthest stage and another all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import ModelError, RunError
from cutaway.models.store import located, model_file, similar_name

if TYPE_CHECKING:
    from cutaway.run.folder import Run

STAGES = ("aligned", "finetuned", "base")
RUNS = Path("runs")


def named(name: str | Path, root: Path = RUNS) -> Path | Run:
    """The folder or GGUF file itself if it is one, as seen from here or from ``root``, else what was fetched under that
    name, else the run of that path, or of that name below ``root``.

    Raises ModelError for a name that can be fetched and was not, RunError if there is no such folder or run.
    """
    for path in (model_file(Path(name)), model_file(root / name)):
        if path.suffix == ".gguf" and path.is_file():
            return path
        if any((path / file).is_file() for file in ("config.json", "adapter_config.json", "tokenizer.json")):
            return path
    if (found := located(name)) is not None:
        return found
    from cutaway.run.folder import open_run  # which reads recipes: a name that was fetched needs none

    try:
        return open_run(name, root)
    except RunError as error:
        from cutaway.models.pull import PACKAGED

        if str(name) in PACKAGED:
            raise ModelError("is not on this machine", where=name, way_out=f"cutaway pull {name}") from error
        if near := similar_name(str(name), list(PACKAGED)):
            raise ModelError(f"no model and no run is called {str(name)!r}",
                             way_out=f"did you mean {near!r}?") from error
        raise


def model_folder(name: str | Path, root: Path = RUNS) -> Path:
    """The model that ``named`` finds, of a run its furthest. Raises RunError too if the run has no model yet."""
    found = named(name, root)
    return found if isinstance(found, Path) else models_in(found)[0]


def models_in(run: Run) -> list[Path]:
    """The finished models of a run that write text, the furthest first. Raises RunError if it has none yet."""
    found = [run.model(stage) for stage in STAGES if run.model(stage).is_dir()]
    if not found:
        raise RunError("has no model yet", where=run.folder, way_out=f"go on with it: cutaway resume {run.folder}")
    return found
