"""Every error a user can meet: what happened, where, and the way out, in one line (after starlette's config errors)."""

from __future__ import annotations

# the way out of a damage to what others made
FILE_AGAIN, FOLDER_AGAIN = "get the file again", "get the folder again"


class CutawayError(ValueError):
    """An error with its place and its remedy. ``str()`` is one line; ``exit_code`` is what the command returns."""

    exit_code = 1

    def __init__(self, what: str, *, where: object | None = None, way_out: str | None = None) -> None:
        self.what, self.where, self.way_out = what, where, way_out
        line = what if where is None else f"{where}: {what}"
        super().__init__(" ".join((line if way_out is None else f"{line}; {way_out}").split()))


class SettingsError(CutawayError):
    """A recipe, an override or an option is wrong."""

    exit_code = 2


class DataError(CutawayError):
    """A corpus, a shard or an example cannot be used."""

    exit_code = 3


class TokenizerError(CutawayError):
    """A tokenizer cannot be trained, read or matched."""

    exit_code = 4


class ModelError(CutawayError):
    """A model folder or an architecture is wrong."""

    exit_code = 5


class CheckpointError(CutawayError):
    """A checkpoint is damaged, incomplete or belongs elsewhere."""

    exit_code = 6


class RunError(CutawayError):
    """A run's folder is taken, in use, absent or cannot be written."""

    exit_code = 7


class RequestError(CutawayError):
    """A request for text cannot be served (too long, empty, an impossible sampler)."""

    exit_code = 8


class MachineError(CutawayError):
    """The machine lacks what was asked for (device, memory, disk)."""

    exit_code = 9


class TrainingError(CutawayError):
    """Training cannot go on (too many non-finite steps, nothing to learn)."""

    exit_code = 10
