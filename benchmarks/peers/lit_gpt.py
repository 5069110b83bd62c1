"""Peer: litgpt's GPT with a Llama-shaped configuration in the plain loop."""

from __future__ import annotations

import torch.nn.functional as F
from litgpt import GPT, Config
from worker import enter, race

if __name__ == "__main__":
    case, turns = enter()
    config = Config(
        name="race",
        block_size=case.context,
        padded_vocab_size=case.vocab_size,
        vocab_size=case.vocab_size,
        n_layer=case.num_layers,
        n_head=case.num_heads,
        n_query_groups=case.num_heads,
        n_embd=case.hidden_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=case.inner,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model.to(case.device)
    model.lm_head.weight = model.transformer.wte.weight  # tied, as everybody else here

    def loss_of(model, tokens, targets):
        logits = model(tokens)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    race(case, turns, model, loss_of)
