"""Peer: Llama of transformers in the plain loop, eager or under torch.compile."""

from __future__ import annotations

import torch.nn.functional as F
from hf import llama
from worker import enter, race

if __name__ == "__main__":
    case, turns = enter()

    def loss_of(model, tokens, targets):
        logits = model(input_ids=tokens).logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    race(case, turns, llama(case), loss_of)
