"""Greedy and beam search give transformers' texts and scores, for an encoder-decoder (T5) and a decoder (Llama)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.folder import save_model
from cutaway.models.model import Model, build
from cutaway.models.transformer import TransformerConfig
from cutaway.settings import decode
from cutaway.text.tokenizer import ByteSettings, train

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 263, "hidden_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
         "intermediate_size": 40, "context_length": 64}
TOKENIZER = train(ByteSettings(), [])
STOPS, LONGEST = tuple(range(30)), 10  # so many that answers end at every length
RULES = {"first": True, "heuristic": False, "never": "never"}


@dataclass(frozen=True)
class Pair:
    """Our model and theirs, with requests of unequal lengths."""

    ours: Model
    theirs: Any
    rows: list[tuple[int, ...]]

    @property
    def sourced(self) -> bool:
        return self.ours.reads_source

    def requests(self, sampling: Sampling | None = None) -> list[Request]:
        """A row is the source where there is one, else the prompt."""
        how = sampling or Sampling()
        return [Request((TOKENIZER.bos_id,) if self.sourced else r, LONGEST, how, stop_ids=STOPS,
                        source=r if self.sourced else None) for r in self.rows]

    def generate(self, **settings: Any) -> tuple[list[list[int]], list[float]]:
        """Their answers, without what stands before and behind, and their scores."""
        width, pad = max(map(len, self.rows)), TOKENIZER.pad_id
        ids = torch.full((len(self.rows), width), pad)
        real = torch.zeros_like(ids)
        for i, r in enumerate(self.rows):
            here = slice(0, len(r)) if self.sourced else slice(width - len(r), width)
            ids[i, here], real[i, here] = torch.tensor(r), 1
        start = {"decoder_start_token_id": TOKENIZER.bos_id} if self.sourced else {}
        out = self.theirs.generate(ids, attention_mask=real, max_new_tokens=LONGEST, do_sample=False, pad_token_id=pad,
                                   eos_token_id=list(STOPS), return_dict_in_generate=True, output_scores=True,
                                   **start, **settings)
        rows = out.sequences[:, 1 if self.sourced else width :].tolist()
        scores = out.sequences_scores.tolist() if "sequences_scores" in out else []
        return [[t for t in r if t != pad] for r in rows], scores


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model = build(TransformerConfig(**SIZES, shape=request.param), seed=3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    folder: Path = tmp_path_factory.mktemp(request.param) / "m"
    save_model(folder, model, TOKENIZER)
    kind = transformers.AutoModelForSeq2SeqLM if model.reads_source else transformers.AutoModelForCausalLM
    rows = [tuple(torch.randint(0, 256, (n,), generator=draw).tolist()) for n in (9, 2, 30, 17, 3, 9)]
    return Pair(model.eval(), kind.from_pretrained(folder).eval(), rows)


def test_greedy_is_theirs(pair: Pair) -> None:
    theirs, _ = pair.generate(num_beams=1)
    greedy = Engine(pair.ours).generate(pair.requests(Sampling(temperature=0)))
    assert [list(c.tokens) for c in greedy] == theirs
    assert len({len(t) for t in theirs}) > 1
    for penalty in (1.0, 0.6):
        found = search(pair.ours, pair.requests(), Beam(width=1, length_penalty=penalty))
        assert [list(f[0].tokens) for f in found] == theirs


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalty", [1.0, 0.6, 0.0, -0.5])
def test_beam_search_is_theirs(pair: Pair, penalty: float, rule: str) -> None:
    theirs, scores = pair.generate(num_beams=4, length_penalty=penalty, early_stopping=RULES[rule],
                                   num_return_sequences=3)
    beam = decode(Beam, {"width": 4, "num_return": 3, "length_penalty": penalty, "early_stopping": rule}, where="test")
    found = [h for answers in search(pair.ours, pair.requests(), beam) for h in answers]
    assert [list(h.tokens) for h in found] == theirs
    assert [h.score for h in found] == pytest.approx(scores, abs=1e-4)
