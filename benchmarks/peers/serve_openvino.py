"""OpenVINO GenAI in ``serve.py``: its continuous batching, all requests in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from serves import Rows, Write, go
from worker import Case, enter


def writing(case: Case, asked: dict[str, Any]) -> Write:
    """The weights that it reads from GGUF or from its own folder, under ``openvino`` by ``dtype``."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.enable_prefix_caching = 2, False
    settings = {"INFERENCE_NUM_THREADS": case.threads, "scheduler_config": scheduler}
    pipe = genai.LLMPipeline(asked["openvino"][case.dtype], "CPU", **settings)

    def write(rows: Rows, count: int) -> Rows:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens = count, count
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        ids = np.array(rows, dtype=np.int64)
        found = pipe.generate(genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), config)
        return [list(map(int, row)) for row in found.tokens]

    return write


if __name__ == "__main__":
    case, turns = enter()
    go(turns, writing)
