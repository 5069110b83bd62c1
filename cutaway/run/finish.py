"""The end of a training stage: save the model, write its lineage and what it cost."""

from __future__ import annotations

from typing import Any

from cutaway.models.cost import cost
from cutaway.models.folder import save_model
from cutaway.models.learning import learned_of, low_rank_of
from cutaway.models.model import Model
from cutaway.run import lineage
from cutaway.run.predict import stage_flops
from cutaway.run.training import Job, whole
from cutaway.run.work import Work


def finish(work: Work, job: Job, model: Model, name: str) -> None:
    """Save ``models/<name>`` and mark the stage done, with what it cost; collective over the ranks."""
    sharded = work.parallel.kind == "fsdp2"
    tensors = work.parallel.gathered(dict(model.named_parameters())) if sharded else {}
    with work.alone() as mine:
        if not mine:
            return
        rows = [r for r in work.run.rows(work.run.log) if r.get("stage") == job.stage]
        if job.learner is not None and not sharded:
            job.learner.save(work, work.run.model(name))
        else:
            save_model(work.run.model(name), whole(model, tensors) if sharded else model, work.tokenizer)
        lineage.add_model(work.run, name, len(rows))
        work.event(job.stage, "done", measured(work, job, rows))


def measured(work: Work, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, tokens, seconds of the steps alone, FLOPs, and the share of the machine's measured peak."""
    tokens = rows[-1]["tokens"] if rows else 0
    seconds = sum(r["seconds"] for r in rows)
    flops = stage_flops(job.model.config, tokens, context=work.recipe.model.context_length, passes=job.passes)
    world = work.parallel.world
    learned, beside = (sum(p.numel() for p in ps) for ps in (
        learned_of(job.model).values(), (p for part in low_rank_of(job.model) for p in part.added())))
    return {"parameters": int(cost(job.model.config).parameters) + beside, "learned_parameters": learned,
            "steps": len(rows), "tokens": tokens, "seconds": seconds, "flops": flops, "ranks": world,
            "tokens_per_second": tokens / max(seconds, 1e-9), "skipped": sum(bool(r.get("skipped")) for r in rows),
            "share_of_peak": flops / max(seconds, 1e-9) / work.machine.peak(work.dtype)}
