"""What both transformers peers share: a Llama of the case's shape, freshly initialised, with SDPA attention."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM
from worker import Case


def llama(case: Case) -> LlamaForCausalLM:
    """float32 weights; autocast decides the arithmetic, as for every peer."""
    config = LlamaConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        intermediate_size=case.inner,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        num_key_value_heads=case.num_heads,
        max_position_embeddings=case.context,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(case.device)
