"""llama.cpp in ``serve.py``, by the functions of its library: all requests in one batch, one call a step.

Arg-max is numpy's over the logits as they lie, which is faster than the library's own sampler.
"""

from __future__ import annotations

from typing import Any

import llama_cpp as ll
import numpy as np
from serves import Rows, Write, go
from worker import Case, enter

UBATCH = 512  # tokens computed at once, the library's default
QUIET = ll.llama_log_callback(lambda level, text, user: None)  # kept, for C calls it later


def writing(case: Case, asked: dict[str, Any]) -> Write:
    """The GGUF file of ``dtype``, with room for all requests side by side."""
    ll.llama_log_set(QUIET, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(asked["gguf"][case.dtype].encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    room = -(-(case.context + case.inner) // 256) * 256
    params.n_ctx, params.n_seq_max = room * case.batch, case.batch
    params.n_batch, params.n_ubatch = max(2048, case.context * case.batch), UBATCH
    params.n_threads = params.n_threads_batch = case.threads
    context = ll.llama_init_from_model(model, params)
    assert context, "llama.cpp made no context"
    batch = ll.llama_batch_init(case.context * case.batch, 0, 1)

    def decode(rows: Rows, position: int) -> list[int]:
        last, n = [], 0
        for which, row in enumerate(rows):
            for at, token in enumerate(row):
                batch.token[n], batch.pos[n] = token, position + at
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, which
                batch.logits[n] = at == len(row) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        assert ll.llama_decode(context, batch) == 0, "llama_decode failed"
        found = (np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (case.vocab_size,)) for i in last)
        return [int(logits.argmax()) for logits in found]

    def write(rows: Rows, count: int) -> Rows:
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        out: Rows = [[] for _ in rows]
        step, position = rows, 0
        for _ in range(count):
            made = decode(step, position)
            position += len(step[0])
            for row, token in zip(out, made, strict=True):
                row.append(token)
            step = [[token] for token in made]
        return out

    return write


if __name__ == "__main__":
    case, turns = enter()
    go(turns, writing)
