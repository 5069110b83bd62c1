"""Cutaway's own contender: ``steps()`` with Likelihood and AdamW, as a user's loop has it."""

from __future__ import annotations

import cutaway  # noqa: F401  (first, as a user has it: it sets how long waiting threads spin)

# isort: split
from trainer import train
from worker import enter

from cutaway.models.transformer import TransformerConfig
from cutaway.objectives.likelihood import Likelihood

if __name__ == "__main__":
    case, turns = enter()
    train(
        case,
        turns,
        TransformerConfig(
            vocab_size=case.vocab_size,
            hidden_size=case.hidden_size,
            num_layers=case.num_layers,
            num_heads=case.num_heads,
            num_kv_heads=case.num_heads,
            intermediate_size=case.inner,
            context_length=case.context,
        ),
        Likelihood(),
    )
