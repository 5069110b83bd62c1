"""Peer: transformers' T5 v1.1 in the plain loop, sources and targets padded."""

from __future__ import annotations

from typing import Any

from shapes import pairs
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from worker import enter, race


def _batch(source: list[Tensor], target: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    padded = nn.utils.rnn.pad_sequence(source, batch_first=True)
    labels = nn.utils.rnn.pad_sequence([t[1:] for t in target], batch_first=True, padding_value=-100)
    return padded, (padded != 0).long(), labels


def loss_of(model: Any, tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Its own loss; it shifts the labels by itself."""
    loss: Tensor = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    return loss


if __name__ == "__main__":
    case, turns = enter()
    config = T5Config(vocab_size=case.vocab_size, d_model=case.hidden_size, d_kv=case.hidden_size // case.num_heads,
                      d_ff=case.inner, num_layers=case.num_layers, num_heads=case.num_heads, dropout_rate=0.0,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False, pad_token_id=0,
                      decoder_start_token_id=1, attn_implementation=case.attention)
    race(case, turns, T5ForConditionalGeneration(config), loss_of, [_batch(*p) for p in pairs(case)])
