"""Cutaway's own recurrent contender: ``steps()`` with Likelihood and AdamW, as a user's loop has it."""

from __future__ import annotations

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
from trainer import train
from worker import enter

from cutaway.models.recurrent import RecurrentConfig
from cutaway.objectives.likelihood import Likelihood
from cutaway.settings import decode

if __name__ == "__main__":
    case, turns = enter()
    config = decode(
        RecurrentConfig,
        {
            "cell": case.cell,
            "vocab_size": case.vocab_size,
            "hidden_size": case.hidden_size,
            "num_layers": case.num_layers,
        },
        where="",
    )
    train(case, turns, config, Likelihood())
