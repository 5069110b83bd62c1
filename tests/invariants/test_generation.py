"""Generation is exact for whatever generates: batched = alone, in any order, cached = uncached, streamed = whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cutaway.batch import Batch
from cutaway.errors import RequestError
from cutaway.generate import kin, prefill, runner, scheduler
from cutaway.generate.beam import Beam, search
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.generate.track import Work
from cutaway.models import transformer
from cutaway.models.kneser_ney import fit
from cutaway.models.model import LanguageModel, Model, State, build
from cutaway.models.ngram import NGramConfig
from tests.tiny import CONFIGS, CONTEXT, VOCABULARY


def made(name: str) -> LanguageModel:
    """A model far from uniform, so that a slip shows."""
    if name == "ngram":
        tokens = (np.random.default_rng(0).zipf(1.5, 600) - 1) % VOCABULARY
        tokens[::20] = 1
        return fit(tokens, np.arange(0, 601, 20), NGramConfig(vocab_size=VOCABULARY, order=3, bos_id=1))
    model = build(CONFIGS[name], seed=4)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3 if p.ndim > 1 else 1)
    return model.eval()


@pytest.fixture(params=[*CONFIGS, "ngram"], scope="module")
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return made(request.param)


def mixed(model: LanguageModel, count: int) -> list[Request]:
    """Requests of all kinds; some share a prompt, and some a source, where the model reads one."""
    draw = torch.Generator().manual_seed(0)
    kinds = [Sampling(), Sampling(temperature=0), Sampling(temperature=0.7, top_k=5), Sampling(top_p=0.8),
             Sampling(min_p=0.1, repetition_penalty=1.3), Sampling(presence_penalty=0.5)]
    sizes = torch.randint(1, 12, (count,), generator=draw).tolist()
    sizes[2] = sizes[5] = sizes[8]
    sources = [tuple(range(3, 4 + (5 * i) % 17)) for i in range(count)]
    sources[5] = sources[8]
    return [Request(tuple(torch.arange(7, 7 + n).tolist()), 1 + i % (CONTEXT - n), kinds[i % len(kinds)], seed=i,
                    stop_ids=(i % 7,), logprobs=i % 3, source=sources[i] if model.reads_source else None)
            for i, n in enumerate(sizes)]


def logs_at_once(model: LanguageModel, request: Request, tokens: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of each token of an answer, all read in one pass, ``(T, V)``."""
    row = torch.tensor([[*request.tokens, *tokens]])[:, :-1]
    with torch.no_grad():
        if isinstance(model, Model):
            source = None if request.source is None else torch.tensor([request.source])
            logits = model(Batch(row, source=source))
        else:
            logits = model.logits(row, model.new_state(1, capacity=CONTEXT), every=True)
    return torch.log_softmax(logits.float(), -1)[0, len(request.tokens) - 1 :]


def test_batched_is_alone_in_any_order(model: LanguageModel) -> None:
    requests = mixed(model, 24)
    alone = [Engine(model).generate([r])[0] for r in requests]
    for rows, turn in ((24, 1), (5, 1), (24, -1)):
        for a, b in zip(alone, Engine(model, max_rows=rows).generate(requests[::turn])[::turn], strict=True):
            assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_whatever_the_order_of_arrival_a_service_gives_the_same(model: LanguageModel) -> None:
    requests = mixed(model, 14)
    alone = [Engine(model).generate([r])[0] for r in requests]
    engine = Engine(model, max_rows=5, step_tokens=7, work=Work(3.0))
    asked, said = dict[int, int](), [list[int]() for _ in requests]
    for i in range(60):
        if i % 3 == 0 and i // 3 < len(requests):
            asked[engine.submit(requests[i // 3])] = i // 3
        for event in engine.step():
            said[asked[event.request]].append(event.token)
    gone = engine.submit(requests[0])
    while not engine.idle:
        for event in engine.step():
            assert event.error is None
            if event.request != gone:
                said[asked[event.request]].append(event.token)
        engine.cancel(gone)
    assert said == [list(a.tokens) for a in alone]


def test_prompt_logprobs_are_those_of_one_pass(model: LanguageModel) -> None:
    for request in mixed(model, 9):
        done, = Engine(model).generate([replace(request, prompt_logprobs=2)])
        short = replace(request, tokens=request.tokens[:1])
        assert done.prompt is not None and done.tokens == Engine(model).generate([request])[0].tokens
        if len(request.tokens) > 1:
            logs = logs_at_once(model, short, request.tokens[1:])
            wanted = logs.gather(1, torch.tensor(request.tokens[1:])[:, None]).squeeze(1)
            assert done.prompt.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
            assert [[a.token for a in best] for best in done.prompt.alternatives] == logs.topk(2).indices.tolist()


def test_joined_states_go_on_as_each_would(model: LanguageModel) -> None:
    rows = [[(3, 1, 4), (9, 8, 7), (3,), (4, 4), (5,)], [(5, 6)], [(2,)]]  # the last finds room behind the others
    sources = [(3, 4, 5), (6,), (8, 7, 6, 5)]

    def begun(some: list[tuple[int, ...]], source: tuple[int, ...]) -> State:
        beside = [source] * len(some) if model.reads_source else None
        state = model.new_state(len(some), capacity=6 + len(some), sources=beside)
        if beside is not None and len(some) > 1:  # which then share it
            state = model.new_state(1, capacity=6 + len(some), sources=beside[:1]).select(torch.tensor([0] * len(some)))
        prefill.append(model, some, state)
        return state

    with torch.inference_mode():
        apart = [begun(*pair) for pair in zip(rows, sources, strict=True)]
        first, *others = [begun(*pair) for pair in zip(rows, sources, strict=True)]
        joined = first.join(others[:1], capacity=12)
        joined = joined.join(others[1:], capacity=12).join((), capacity=15)
        assert joined.capacity == 15
        for token in range(5):
            wanted = torch.cat([model.logits(torch.full((len(some), 1), 11 + token), state)
                                for some, state in zip(rows, apart, strict=True)])
            found = model.logits(torch.full((7, 1), 11 + token), joined)
            assert torch.allclose(found, wanted, atol=1e-4)
            assert joined.lengths.tolist() == [n for state in apart for n in state.lengths.tolist()]
            if token == 2:
                apart = [state.select(torch.arange(len(state.lengths)).flip(0)) for state in apart]
                joined = joined.select(torch.tensor([4, 3, 2, 1, 0, 5, 6]))


def test_streamed_is_whole(model: LanguageModel) -> None:
    requests = mixed(model, 12)
    events = list(Engine(model, max_rows=5).stream(requests))
    for i, done in enumerate(Engine(model).generate(requests)):
        mine = [e for e in events if e.request == i]
        assert tuple(e.token for e in mine) == done.tokens
        assert mine[-1].finish == done.finish_reason


def test_logprobs_are_those_of_one_uncached_pass(model: LanguageModel) -> None:
    for request, done in zip(requests := mixed(model, 12), Engine(model).generate(requests), strict=True):
        if request.logprobs is None:
            continue
        logs = logs_at_once(model, request, done.tokens)
        wanted = logs.gather(1, torch.tensor(done.tokens)[:, None]).squeeze(1)
        assert done.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        if request.sampling == Sampling(temperature=0):
            assert list(done.tokens) == logs.argmax(1).tolist()


def test_what_is_read_in_pieces_is_read_at_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = mixed(model, 10)
    whole = Engine(model).generate(requests)
    for place in (prefill, transformer):
        monkeypatch.setattr(place, "READ", 200)
    pieces = Engine(model).generate(requests)
    assert [p.tokens for p in pieces] == [w.tokens for w in whole]
    monkeypatch.setattr(scheduler, "BULK", 5)
    chunks = Engine(model).generate(requests)
    assert [c.tokens for c in chunks] == [w.tokens for w in whole]


def test_what_all_prompts_begin_with_is_read_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [replace(r, tokens=(7, 5, 9, *r.tokens), max_tokens=4) for r in mixed(model, 10)
                if len(r.tokens) + 7 <= CONTEXT]
    wanted, read = Engine(model).generate(requests), list[int]()
    monkeypatch.setattr(kin, "SHARED", 3)
    own = prefill.append
    monkeypatch.setattr(runner, "append", lambda m, rows, state: (read.append(len(rows)), own(m, rows, state))[1])
    for a, b in zip(Engine(model).generate(requests), wanted, strict=True):
        assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert (read[0] == 1) != model.reads_source and len(requests) > 3


def test_a_beam_is_alone_in_a_batch_and_its_scores_are_those_of_one_pass(model: LanguageModel) -> None:
    requests = [Request(r.tokens, r.max_tokens, stop_ids=tuple(range(9)), source=r.source) for r in mixed(model, 9)]
    beam = Beam(width=3, num_return=2, length_penalty=0.6)
    together = search(model, requests, beam)
    for turn, rows in ((1, 7), (-1, 256)):
        again = search(model, requests[::turn], beam, max_rows=rows)[::turn]
        assert [[h.tokens for h in f] for f in again] == [[h.tokens for h in f] for f in together]
    for request, found in zip(requests, together, strict=True):
        assert [h.tokens for h in search(model, [request], beam)[0]] == [h.tokens for h in found]
        for h in found:
            logs = logs_at_once(model, request, h.tokens).gather(1, torch.tensor(h.tokens)[:, None])
            assert h.logprob == pytest.approx(float(logs.sum()), abs=1e-3)
            assert h.score == pytest.approx(h.logprob / len(h.tokens) ** 0.6)


def test_a_beam_of_one_is_greedy(model: LanguageModel) -> None:
    requests = [Request(r.tokens, r.max_tokens, Sampling(temperature=0), stop_ids=tuple(range(9)), source=r.source)
                for r in mixed(model, 9)]
    found = search(model, requests, Beam(width=1))
    assert [f[0].tokens for f in found] == [c.tokens for c in Engine(model).generate(requests)]


def test_sources_belong_to_models_that_read_them(model: LanguageModel) -> None:
    fits, other = Request((1,), 2), Request((1,), 2, source=(3, 4))
    if model.reads_source:
        fits, other = other, fits
    said = "writes beside a source" if model.reads_source else "reads no source"
    with pytest.raises(RequestError, match=rf"request 1: this model {said}.*request has"):
        Engine(model).generate([fits, other])
    with pytest.raises(RequestError, match=f"request: this model {said}"):
        search(model, [other], Beam())
    assert len(Engine(model).generate([fits])[0].tokens) == 2


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.traits.reads_source])
def test_a_source_that_does_not_fit_is_refused_with_both_numbers(name: str) -> None:
    model = made(name)
    size = model.context_length
    with pytest.raises(RequestError, match=rf"a source of {size + 1} tokens does not fit a context of {size}"):
        Engine(model).generate([Request((1,), 2, source=(3,) * (size + 1))])
    with pytest.raises(RequestError, match="the source is empty"):
        Engine(model).generate([Request((1,), 2, source=())])
    with pytest.raises(RequestError, match=rf"token {VOCABULARY} is outside .* encode the source"):
        Engine(model).generate([Request((1,), 2, source=(VOCABULARY,))])
    assert Engine(model).generate([Request((1,), 2, source=(3,) * size)])


@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if c.traits.reads_source])
def test_a_source_is_read_once_and_shared(name: str) -> None:
    model, read = made(name), 0
    assert isinstance(model, Model)

    def count(*given: object) -> None:
        nonlocal read
        what = next(g for g in given[1] if hasattr(g, "documents"))  # type: ignore[attr-defined]
        read += int((what.documents >= 0).sum()) if what.documents is not None else what.tokens.numel()

    hook = model.backbone.encoder.register_forward_pre_hook(count)
    sources = ((3, 4), (5, 6, 7))
    Engine(model).generate([Request((1,), 5, seed=s, source=source) for s in range(6) for source in sources])
    assert read == 5
    search(model, [Request((1,), 5, source=(3, 4, 5, 6))], Beam(width=4))
    assert read == 9
    hook.remove()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_learns_after_it_has_generated(name: str) -> None:
    model = made(name)
    assert isinstance(model, Model)
    source = (3, 4) if model.reads_source else None
    Engine(model).generate([Request((1, 2), 4, source=source)])
    beside = None if source is None else torch.tensor([source])
    model(Batch(torch.tensor([[1, 2, 3]]), source=beside)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_drawn_shares_are_the_models_probabilities(model: LanguageModel) -> None:
    n, source = 4000, (3, 4) if model.reads_source else None
    done = Engine(model, max_rows=n).generate([Request((3, 1), 1, seed=s, source=source) for s in range(n)])
    p = logs_at_once(model, Request((3, 1), 1, source=source), (0,))[0].exp()
    share = torch.bincount(torch.tensor([d.tokens[0] for d in done]), minlength=VOCABULARY) / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-3).all()
