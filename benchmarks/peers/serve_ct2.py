"""CTranslate2 in ``serve.py``: a batch of prompts in one call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
from serves import Rows, Write, go
from worker import Case, enter


def writing(case: Case, asked: dict[str, Any]) -> Write:
    """The converted folder of ``dtype``; its tokens are words of a vocabulary."""
    both = case.work == "translate"
    folder = asked["ctranslate2"]["t5" if both else "model"][case.dtype]
    words: list[str] = json.loads((Path(folder) / f"{'shared_' * both}vocabulary.json").read_text())
    settings = {"device": "cpu", "compute_type": case.dtype, "inter_threads": 1, "intra_threads": case.threads}
    if both:
        translator = ctranslate2.Translator(folder, **settings)
        ids = {word: i for i, word in enumerate(words)}

        def translate(rows: Rows, count: int) -> Rows:
            found = translator.translate_batch([[words[i] for i in row] for row in rows], beam_size=1,
                                               max_decoding_length=count, min_decoding_length=count, max_batch_size=0)
            return [[ids[word] for word in result.hypotheses[0]] for result in found]

        return translate
    model = ctranslate2.Generator(folder, **settings)

    def write(rows: Rows, count: int) -> Rows:
        found = model.generate_batch([[words[i] for i in row] for row in rows], max_length=count, min_length=count,
                                     sampling_topk=1, include_prompt_in_result=False, max_batch_size=0)
        return [list(result.sequences_ids[0]) for result in found]

    return write


if __name__ == "__main__":
    case, turns = enter()
    go(turns, writing)
