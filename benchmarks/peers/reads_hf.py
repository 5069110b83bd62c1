"""sentence-transformers, transformers and ONNX Runtime in ``inference.py``; ``attention`` names which of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reads import Step, given, go, prompts, texts
from worker import Case, enter


def sentences(case: Case, asked: dict[str, Any]) -> Step:
    """A batch of sentences to vectors by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    dtype = {"torch_dtype": getattr(torch, case.dtype)}
    model = SentenceTransformer(asked["encoder"], device="cpu", model_kwargs=dtype)
    if case.compiled:
        model[0].compile(dynamic=True)
    batches = texts(case, asked)
    return lambda number: float(model.encode(batches[number % len(batches)], batch_size=case.batch,
                                             show_progress_bar=False).sum())


def by_onnx(encoder: str, *, int8: bool, threads: int) -> Callable[[list[str]], np.ndarray]:
    """What turns texts into vectors by ONNX Runtime, dynamically quantised where it is asked for."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder, attn_implementation="eager").eval()
    folder = Path(tempfile.mkdtemp(prefix="cutaway-onnx-"))
    path, names = folder / "model.onnx", ["input_ids", "attention_mask", "token_type_ids"]
    sample = tokenizer(["one two three", "four"], padding=True, return_tensors="pt")
    axes = {name: {0: "rows", 1: "tokens"} for name in names}
    torch.onnx.export(_Hidden(model), tuple(sample[n] for n in names), str(path), input_names=names,
                      output_names=["hidden"], dynamic_axes={**axes, "hidden": {0: "rows", 1: "tokens"}}, dynamo=False)
    if int8:
        quantize_dynamic(str(path), str(folder / "int8.onnx"), weight_type=QuantType.QInt8)
        path = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def vectors(given: list[str]) -> np.ndarray:
        rows = tokenizer(given, padding=True, truncation=True, max_length=256, return_tensors="np")
        hidden = session.run(None, {n: rows[n].astype(np.int64) for n in names})[0]
        real = rows["attention_mask"][..., None].astype(np.float32)
        mean = (hidden * real).sum(1) / real.sum(1)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))

    return vectors


def runtime(case: Case, asked: dict[str, Any]) -> Step:
    """A batch of sentences to vectors by ONNX Runtime."""
    vectors = by_onnx(asked["encoder"], int8=case.dtype == "int8", threads=case.threads)
    batches = texts(case, asked)
    return lambda number: float(vectors(batches[number % len(batches)]).sum())


class _Hidden(torch.nn.Module):
    """A network that gives its last hidden states and nothing else."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        return out


def writing(case: Case, asked: dict[str, Any]) -> Step:
    """``inner`` greedy tokens behind each prompt by ``generate``; of reading alone, the first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(asked["decoder"], dtype=getattr(torch, case.dtype)).eval()

    def step(number: int) -> float:
        rows = prompts(case, number)
        out = model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=case.inner,
                             min_new_tokens=case.inner, do_sample=False, pad_token_id=0)
        return float(out[:, case.context :].sum())

    return step


def loading(asked: dict[str, Any]) -> Step:
    """Open a model in float32 and read three tokens with it."""
    from transformers import AutoModelForCausalLM

    def step(number: int) -> float:
        model = AutoModelForCausalLM.from_pretrained(asked["decoder"], dtype=torch.float32).eval()
        return float(model(torch.tensor([[1, 2, 3]])).logits.sum())

    return step


if __name__ == "__main__":
    case, turns = enter()
    asked = given(case)
    if case.work == "load":
        go(turns, lambda: loading(asked))
    elif case.work.startswith("sentences"):
        go(turns, lambda: (runtime if case.attention == "onnx" else sentences)(case, asked))
    else:
        go(turns, lambda: writing(case, asked))
