"""Peer: transformers' ModernBERT and BERT, trained on masked words, and reading sentences to classify them."""

from __future__ import annotations

from typing import Any

import torch
from shapes import CLASSES, masked, sentences
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)
from worker import Case, enter, infer, race


def network(case: Case) -> Any:
    """Of the case's sizes, without dropout; every layer of ModernBERT sees everything, as the others' do."""
    classify = case.work != "masked"
    sizes = {"vocab_size": case.vocab_size, "hidden_size": case.hidden_size, "num_hidden_layers": case.num_layers,
             "num_attention_heads": case.num_heads, "max_position_embeddings": max(case.context, 64), "pad_token_id": 0,
             "attn_implementation": case.attention, "num_labels": CLASSES}
    if case.network == "modernbert":
        config = ModernBertConfig(**sizes, intermediate_size=case.inner, sparse_prediction=not classify,
                                  layer_types=["full_attention"] * case.num_layers, classifier_pooling="mean",
                                  bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
        return (ModernBertForSequenceClassification if classify else ModernBertForMaskedLM)(config)
    config = BertConfig(**sizes, intermediate_size=case.inner * 3 // 2, hidden_dropout_prob=0.0,  # GELU, not gated
                        attention_probs_dropout_prob=0.0)
    return (BertForSequenceClassification if classify else BertForMaskedLM)(config)


def loss_of(model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
    """Its own masked loss."""
    loss: Tensor = model(input_ids=tokens, labels=labels).loss
    return loss


def answer(batch: list[Tensor]) -> Tensor:
    """A padded batch through the network, as its pipeline lays it."""
    padded = nn.utils.rnn.pad_sequence(batch, batch_first=True)
    mask = (padded != 0).long() if len(batch) > 1 else None
    logits: Tensor = model(input_ids=padded, attention_mask=mask).logits
    return logits


if __name__ == "__main__":
    case, turns = enter()
    model = network(case)
    if case.work == "masked":
        race(case, turns, model, loss_of, [(t, torch.where(m, t, -100)) for t, m in masked(case)])
    else:
        model.eval()
        turns.note["parameters"] = sum(p.numel() for p in model.parameters())
        if case.dtype == "bfloat16":
            model.to(torch.bfloat16)  # faster than autocast, which casts every weight at every batch
        infer(case, turns, answer, sentences(case))
