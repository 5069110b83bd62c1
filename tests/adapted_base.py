"""A tiny model folder in a public format, with a chat template of its own, that adapting runs begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.models.folder import save_model
from cutaway.models.model import build
from cutaway.models.transformer import TransformerConfig
from cutaway.text.public import byte_level, made
from cutaway.text.tokenizer import Tokenizer
from cutaway.text.vocabulary import added_token

TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
            "+ '<|im_end|>' + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SIZES: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
                         "intermediate_size": 48, "context_length": 256}


def base_tokenizer() -> Tokenizer:
    """Bytes and two control tokens, by somebody else's rules."""
    from tokenizers.pre_tokenizers import ByteLevel

    control = ["<|im_start|>", "<|im_end|>"]
    vocab = {letter: i for i, letter in enumerate([*control, *sorted(ByteLevel.alphabet())])}
    tree = byte_level(vocab, [], where="a test")
    tree["added_tokens"] = [added_token(i, name) for i, name in enumerate(control)]
    return made(tree, {"bos_token": control[0], "eos_token": control[1]}, template=TEMPLATE, where="a test")


def write_base(folder: Path, *, tied: bool = True, seed: int = 5) -> Path:
    """Random weights, as transformers would save them."""
    tokenizer = base_tokenizer()
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, tie_embeddings=tied, **SIZES)
    save_model(folder, build(config, seed=seed), tokenizer)
    return folder


def small(corpus: Path, base: Path, *more: str) -> list[str]:
    """Words behind ``cutaway run smollm2-…``."""
    return [f"data.path={corpus}", f"model.path={base}", "model.context_length=200", "evaluate.requests=6",
            "evaluate.bytes=3000", "evaluate.max_tokens=8", "finetune.rows=2", "finetune.budget.steps=6",
            "checkpoint.steps=2", "dtype=float32", "threads=1", *more]


DPO = ["preferences.budget.requests=24", "preferences.max_tokens=24", "align.rows=2", "align.budget.steps=4"]
GRPO = ["align.budget.steps=4", "align.rollouts.prompts=2", "align.rollouts.samples=2", "align.rollouts.max_tokens=6"]
