"""Peer: a language model of torch's own nn.LSTM, nn.GRU or nn.RNN in the plain loop, eager."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worker import Case, enter, race

LAYERS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "vanilla": nn.RNN}


class Recurrent(nn.Module):
    """Embedding, layers, tied head, mean cross-entropy, as PyTorch's word language model example has it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = nn.Embedding(case.vocab_size, case.hidden_size)
        self.layers = LAYERS[case.cell](
            case.hidden_size, case.hidden_size, case.num_layers, batch_first=True
        )
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        hidden, _ = self.layers(self.tokens(tokens))
        logits = F.linear(hidden, self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    case, turns = enter()
    race(
        case,
        turns,
        Recurrent(case).to(torch.device(case.device)),
        lambda m, tokens, targets: m(tokens, targets),
    )
