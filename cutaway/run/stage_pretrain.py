"""Stage 2, pre-training: the next token of packed documents."""

from __future__ import annotations

from cutaway.data.loader import Loader
from cutaway.data.shards import Shards
from cutaway.evaluate.bits import score
from cutaway.models.model import Model, build
from cutaway.objectives.likelihood import Likelihood
from cutaway.run.finish import finish
from cutaway.run.folder import Run
from cutaway.run.recipe import ModelSettings, Recipe
from cutaway.run.training import Job, length, train
from cutaway.run.work import Work

STAGE, MODEL = "pretrain", "base"


def fresh(work: Work) -> Model:
    """The model before any learning: equal seeds give equal weights."""
    assert isinstance(work.recipe.model, ModelSettings)
    config = work.recipe.model.config(work.tokenizer.vocab_size)
    return build(config, seed=work.recipe.seed, compute_dtype=work.dtype).to(work.device.torch)


def loader(run: Run, recipe: Recipe, rows: int, seed: int) -> Loader:
    """The training split in rows of the context's length."""
    return Loader(Shards.open(run.folder / "data" / "shards", "train"), rows=rows,
                  length=recipe.model.context_length, seed=seed)


def valid_bits(work: Work, model: Model) -> dict[str, float]:
    """Bits per byte of the validation text: what best checkpoints are chosen by, never the test split."""
    found = score(model, work.tokenizer, work.text.valid, overlap=0, context=work.recipe.model.context_length)
    return {"valid_bits_per_byte": found.measurement().value}


def pretrain_stage(work: Work) -> None:
    """Train the base model."""
    settings, context = work.recipe.pretrain, work.recipe.model.context_length
    assert settings is not None
    source = loader(work.run, work.recipe, settings.rows, work.recipe.seed)
    rank, world = work.parallel.rank, work.parallel.world
    model = fresh(work)
    job = Job(STAGE, model, lambda n: source.batch(n, rank=rank, world=world).micro(settings.micro), Likelihood(),
              settings, look=lambda m: valid_bits(work, m), best=("valid_bits_per_byte", -1),
              step_tokens=settings.rows * context, compile=settings.compile)
    finish(work, job, train(work, job, length(work, job, settings.budget)), MODEL)
