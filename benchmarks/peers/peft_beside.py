"""peft: all adapters loaded beside one model, a batch whose rows have their own (``adapter_names``)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from worker import enter

if __name__ == "__main__":
    case, turns = enter()
    plan = json.loads(Path(case.network).read_text("utf-8"))
    base = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.float32)
    (first, folder), *others = plan["adapters"].items()
    model = PeftModel.from_pretrained(base, folder, adapter_name=first)
    for name, folder in others:
        model.load_adapter(folder, adapter_name=name)
    model.eval()
    ids = torch.tensor([row["prompt"] for row in plan["rows"]])
    names = [row["adapter"] for row in plan["rows"]]
    with torch.inference_mode():
        for _ in turns:
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names,
                                 do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=plan["tokens"],
                                 min_new_tokens=plan["tokens"])
            turns.note["answers"] = out[:, ids.shape[1] :].tolist()
