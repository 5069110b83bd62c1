"""transformers in ``serve.py``: ``generate`` on all rows."""

from __future__ import annotations

from typing import Any

import torch
from serves import Rows, Write, go
from worker import Case, enter


def writing(case: Case, asked: dict[str, Any]) -> Write:
    """The folder in ``dtype``, with the cache that grows, which is its default and here its fastest."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    both = case.work == "translate"
    kind, folder = (AutoModelForSeq2SeqLM, asked["t5"]) if both else (AutoModelForCausalLM, asked["folder"])
    model = kind.from_pretrained(folder, dtype=getattr(torch, case.dtype)).eval()

    def write(rows: Rows, count: int) -> Rows:
        ids = torch.tensor(rows)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                                 do_sample=False, pad_token_id=0)
        begun = 1 if both else ids.shape[1]  # what the decoder begins with, or the prompt
        found: Rows = out[:, begun:].tolist()
        return found

    return write


if __name__ == "__main__":
    case, turns = enter()
    go(turns, writing)
