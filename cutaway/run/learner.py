"""What a stage trains: a model of the run, or the one that the run begins with, of which what was asked learns; and how
it is saved, as a model or as adapters beside their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import ModelError, SettingsError
from cutaway.models.adapted import base_name, base_of, is_adapter, known_by, open_model, open_tokenizer
from cutaway.models.adapter import Full, Lora, Partial, adapt, difference, merge, save_adapter
from cutaway.models.folder import save_model
from cutaway.models.learning import learned_of, low_rank_of, settled
from cutaway.models.model import Model
from cutaway.models.open import open_writer
from cutaway.run.place import model_folder
from cutaway.run.recipe import FolderModel, Recipe
from cutaway.run.work import Work
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Learner:
    """A ``model`` that learns and what it began as: the run's model ``begins``; what adapters stand beside lies at
    ``base`` and is ``known`` again."""

    model: Model
    begins: str
    adapt: Full | Partial | Lora
    base: Path
    known: dict[str, Any]

    @property
    def passes(self) -> float:
        """Forward passes' worth of work on each token: the backward pass is a second, and what learns a third of its
        own share; parts stand at the end of a model mostly, and nothing goes further back than the first of them."""
        if isinstance(self.adapt, Full):
            return 3.0
        learned = sum(p.numel() for p in learned_of(self.model).values())
        share = learned / sum(p.numel() for p in self.model.parameters())
        return 2.0 + share if isinstance(self.adapt, Lora) else 1.0 + 2.0 * share

    def save(self, work: Work, folder: Path) -> None:
        """The model's folder; of adapters, theirs."""
        if isinstance(self.adapt, Lora):
            self.save_adapters(folder, work.tokenizer)
            return
        model = self.model
        if isinstance(self.adapt, Partial):  # what did not learn has lost digits here: it is read again
            model = merge(work.load(self.begins))
            learned, parameters = learned_of(self.model), dict(model.named_parameters())
            with torch.no_grad():
                for name, value in learned.items():
                    parameters[name].copy_(value)
        save_model(folder, model, work.tokenizer)

    def save_adapters(self, folder: Path, tokenizer: Tokenizer | None = None) -> None:
        """The adapters alone, in peft's format, with the reference to their base."""
        save_adapter(folder, self.model, base=base_name(self.base, folder), tokenizer=tokenizer, side=self.known)


def learner(work: Work, begins: str, settings: Full | Partial | Lora) -> Learner:
    """The run's model of that name, ready to learn. Raises ModelError for adapters of other sizes, scale or places than
    asked for."""
    place = work.place(begins)
    model, base = work.load(begins), base_of(place) if is_adapter(place) else place
    known = known_by(model, base)
    if not isinstance(settings, Lora):
        return Learner(settled(adapt(merge(model), settings)), begins, settings, place, known)
    if not low_rank_of(model):
        adapt(model, settings, seed=work.recipe.seed)
    _check_adapters(model, settings, place)
    for part in low_rank_of(model):
        part.dropout = settings.dropout
    return Learner(settled(model), begins, settings, base, known)


def _check_adapters(model: Model, settings: Lora, place: Path) -> None:
    if (found := difference(model, settings)) is not None:
        raise ModelError(found, where=place,
                         way_out="ask for adapters as they are, or merge them first with `cutaway export`")


def check_model(recipe: Recipe) -> None:
    """Refuse what could only fail minutes later: a model that is not there, writes no text, holds no conversation or is
    too short for the recipe, names of parts that it does not have, and adapters of its own that are others than those
    that are to learn."""
    if not isinstance(recipe.model, FolderModel):
        return
    place = model_folder(recipe.model.path)
    model = open_writer(place)
    if not isinstance(model, Model) or model.reads_source:
        raise ModelError("cannot be fine-tuned on conversations", where=place, way_out="name a decoder")
    if recipe.model.context_length > model.context_length:
        raise SettingsError(f"model.context_length = {recipe.model.context_length} is more than the model's own, "
                            f"{model.context_length}", where=place, way_out="lower it")
    render([Message("user", "")], open_tokenizer(place))
    settings = [stage.adapt for stage in (recipe.finetune, recipe.align) if stage is not None]
    if is_adapter(place) and isinstance(settings[0], Lora):  # with another first stage they are merged
        _check_adapters(open_model(place), settings[0], place)
    for one in sorted(settings, key=lambda s: isinstance(s, Lora)):
        if not low_rank_of(model):
            adapt(model, one)
