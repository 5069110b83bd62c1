"""Every log-probability that KenLM 0.3.0 printed for a small corpus of made-up sentences, by our n-gram model.

``kenlm/figures.json`` holds what ``lmplz --discount_fallback`` and ``full_scores`` gave for ``kenlm/corpus.txt`` and
``kenlm/held.txt``, to seven places, so neither is needed here; benchmarks/ngram.py compares on real text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGram, NGramConfig

HERE = Path(__file__).parent / "kenlm"
CASES = json.loads((HERE / "figures.json").read_text())["cases"]
pytestmark = pytest.mark.filterwarnings("ignore:the discounts of")


def rows(name: str) -> list[list[str]]:
    return [line.split() for line in (HERE / name).read_text().splitlines()]


def model(case: dict[str, Any]) -> tuple[NGram, dict[str, int]]:
    """Ours with lmplz's vocabulary: its words, </s> and <unk> (or as many as it was padded to), and <s>."""
    learned = rows("corpus.txt")[: case["lines"]]
    words = sorted({w for row in learned for w in row})
    ids = {w: i for i, w in enumerate(words)} | {"<s>": len(words), "</s>": len(words) + 1, "<unk>": len(words) + 2}
    documents = [[ids["<s>"], *(ids[w] for w in row), ids["</s>"]] for row in learned]
    size = max(case["vocab_pad"], len(words) + 2) + 1
    config = NGramConfig(vocab_size=size, order=case["order"], bos_id=ids["<s>"], prune=tuple(case["prune"]))
    return fit(np.concatenate(documents), np.cumsum([0, *map(len, documents)]), config), ids


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['lines']}-{c['order']}-{c['prune']}-{c['vocab_pad']}")
def test_every_probability_is_kenlm_s(case: dict[str, Any]) -> None:
    fitted, ids = model(case)
    sizes = [len(t.words) for t in fitted.tables]
    assert sizes == [case["ngrams"][0] - 1, *case["ngrams"][1:]]  # its single tokens count <unk>
    held = [[ids["<s>"], *(ids.get(w, ids["<unk>"]) for w in row), ids["</s>"]] for row in rows("held.txt")]
    starts = np.cumsum([0, *map(len, held)])
    logs = fitted.score(np.concatenate(held), starts) / np.log(10)
    for start, row in zip(starts[:-1], case["log10"], strict=True):
        assert logs[start + 1 : start + 1 + len(row)] == pytest.approx(row, abs=2e-6)
    theirs = sum(map(sum, case["log10"]))
    assert logs.sum() == pytest.approx(theirs, rel=1e-6)


def test_the_figures_cover_what_differs() -> None:
    """Unpruned and pruned, padded, orders up to five, and a corpus too small for its own discounts."""
    assert {c["order"] for c in CASES} >= {2, 3, 5} and any(c["vocab_pad"] for c in CASES)
    assert sum(any(c["prune"]) for c in CASES) >= 2 and min(c["lines"] for c in CASES) < 50
