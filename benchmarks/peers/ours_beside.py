"""Ours: adapters by name in one batch; or all rows without one, all with the same, or merged models in turn."""

from __future__ import annotations

import json
from pathlib import Path

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
from worker import enter

from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.open import open_language_model

if __name__ == "__main__":
    case, turns = enter()
    how, precision = case.work.split()
    plan = json.loads(Path(case.network).read_text("utf-8"))
    names = list(plan["adapters"])
    if how == "merged":
        base = json.loads((Path(plan["adapters"][names[0]]) / "adapter_config.json").read_text("utf-8"))
        for name in names:
            base["base_model_name_or_path"] = plan["model"]
            (Path(plan["adapters"][name]) / "adapter_config.json").write_text(json.dumps(base), "utf-8")
        engines = {name: Engine(open_language_model(plan["adapters"][name], precision=precision)) for name in names}
    else:
        shared = Engine(open_language_model(plan["model"], precision=precision, adapters=plan["adapters"]))
        engines = dict.fromkeys(names, shared)
    chosen = {name: name if how == "mixed" else names[0] if how == "one" else None for name in names}
    requests = {name: [Request(tuple(row["prompt"]), plan["tokens"], Sampling(temperature=0),
                               adapter=chosen[name]) for row in plan["rows"] if row["adapter"] == name]
                for name in names}
    for _ in turns:
        if how == "merged":
            found = {name: engines[name].generate(requests[name]) for name in names}
        else:
            every = [request for name in names for request in requests[name]]
            done = iter(shared.generate(every))
            found = {name: [next(done) for _ in requests[name]] for name in names}
        waiting = {name: iter(done) for name, done in found.items()}
        turns.note["answers"] = [list(next(waiting[row["adapter"]]).tokens) for row in plan["rows"]]
