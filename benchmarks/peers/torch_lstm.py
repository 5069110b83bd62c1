"""Peer: torch's own ``nn.LSTM`` as a language model with a tied head, in the plain loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worker import Case, enter, race


class Recurrent(nn.Module):
    """Embedding, layers of LSTM, tied head, mean cross-entropy."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(case.vocab_size, case.hidden_size)
        self.lstm = nn.LSTM(case.hidden_size, case.hidden_size, case.num_layers, batch_first=True)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        hidden = self.lstm(self.tokens(tokens))[0]
        logits = F.linear(hidden, self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    case, turns = enter()
    torch.manual_seed(0)
    race(case, turns, Recurrent(case), lambda model, *batch: model(*batch))
