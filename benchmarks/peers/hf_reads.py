"""transformers and sentence-transformers reading the models of ``quality/real_models.py``: one JSON line on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file


def language(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a GGUF file: logits and greedy ids of prompts, summed negative log-likelihoods of rows of ids."""
    from transformers import AutoModelForCausalLM

    path = Path(asked["file"])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    out: dict[str, Any] = {"greedy": [], "nll": []}
    logits = []
    with torch.no_grad():
        for prompt in asked["prompts"]:
            row = torch.tensor([prompt])
            logits.append(model(row).logits[0])
            written = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=asked["tokens"],
                                     do_sample=False, eos_token_id=None, pad_token_id=0)
            out["greedy"].append(written[0, len(prompt) :].tolist())
        for row in asked["rows"]:
            found = torch.log_softmax(model(torch.tensor([row])).logits[0, :-1].double(), -1)
            out["nll"].append(-float(found.gather(1, torch.tensor(row[1:])[:, None]).sum()))
    save_file({str(i): found.contiguous() for i, found in enumerate(logits)}, asked["logits"])
    return out


def vectors(asked: dict[str, Any]) -> dict[str, Any]:
    """Of a folder: every text's vector, by sentence-transformers or by ONNX Runtime in int8."""
    if asked["by"] == "onnxruntime int8":
        from reads_hf import by_onnx

        read, texts = by_onnx(asked["folder"], int8=True, threads=torch.get_num_threads()), asked["texts"]
        found = np.concatenate([read(texts[at : at + 32]) for at in range(0, len(texts), 32)])
    else:
        from sentence_transformers import SentenceTransformer

        found = SentenceTransformer(asked["folder"], device="cpu").encode(asked["texts"], batch_size=32,
                                                                         show_progress_bar=False)
    save_file({"vectors": torch.from_numpy(found)}, asked["vectors"])
    return {"count": len(found)}


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    print(json.dumps({"language": language, "vectors": vectors}[given["what"]](given)))
