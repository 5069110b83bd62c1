"""What a load made of a server, as Measurements: latencies at percentiles, tokens a second, errors by kind.

Intervals are bootstraps over requests, drawn whole with all their tokens, since those of one request are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cutaway.probe.load import Load, Outcome
from cutaway.probe.load_client import Answer
from cutaway.records import Measurement, bootstrap_quantile

PERCENTILES = (50, 90, 99)
DEFINITIONS = {
    "time_to_first_token": "from when a request was due (open loop) or sent (closed loop) to its first piece of text",
    "inter_token_latency": "from a piece of text to the next of the same request, all gaps of all requests together",
    "time_per_output_token": "(end - first piece) / (tokens - 1) of a request; requests of one token have none",
    "latency": "from when a request was due or sent to the end of its stream",
    "output_tokens_per_second": "tokens of all whole answers / seconds from the first request to the last end",
    "requests_per_second": "whole answers / the same seconds",
}


def figures(load: Load, outcome: Outcome) -> list[Measurement]:
    """Every figure; latencies are of whole answers alone, and errors are counted beside them."""
    whole = [a for a in outcome.answers if a.error is None]
    conditions = {**load.model_dump(), "model": outcome.model, "loop": "open" if load.rate is not None else "closed"}
    found = [Measurement("errors", (len(outcome.answers) - len(whole)) / len(outcome.answers), "share",
                         len(outcome.answers), conditions={**conditions, "kinds": errors(outcome)})]
    if not whole:
        return found
    counts = [_tokens(a) for a in whole]
    how = {**conditions, "tokens": "usage" if all(a.output_tokens is not None for a in whole) else "pieces of text"}
    found += [Measurement("output_tokens_per_second", sum(counts) / outcome.seconds, "tokens/s", len(whole),
                          conditions=how),
              Measurement("requests_per_second", len(whole) / outcome.seconds, "requests/s", len(whole),
                          conditions=conditions)]
    for name, groups in _latencies(whole).items():
        found += [_percentile(name, groups, percent, load.seed, conditions) for percent in PERCENTILES if groups]
    return found


def errors(outcome: Outcome) -> dict[str, int]:
    """How often each kind of error came."""
    return dict(sorted(Counter(a.error for a in outcome.answers if a.error is not None).items()))


def lengths(outcome: Outcome) -> dict[str, float | None]:
    """Mean tokens of prompts and answers as the server counted them; None where it did not."""
    whole = [a for a in outcome.answers if a.error is None]
    return {"prompt_tokens": _mean([a.prompt_tokens for a in whole]),
            "output_tokens": _mean([a.output_tokens for a in whole])}


def _mean(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _tokens(answer: Answer) -> int:
    return len(answer.texts) if answer.output_tokens is None else answer.output_tokens


def _latencies(whole: Sequence[Answer]) -> dict[str, list[list[float]]]:
    """Seconds by name, in a group for each request."""
    gaps = [[b - a for a, b in zip(w.texts, w.texts[1:], strict=False)] for w in whole]
    each = [[(w.ended - w.texts[0]) / (_tokens(w) - 1)] for w in whole if _tokens(w) > 1]
    return {"time_to_first_token": [[w.texts[0] - w.due] for w in whole],
            "inter_token_latency": [g for g in gaps if g], "time_per_output_token": each,
            "latency": [[w.ended - w.due] for w in whole]}


def _percentile(name: str, groups: Sequence[Sequence[float]], percent: int, seed: int,
                conditions: dict[str, Any]) -> Measurement:
    import numpy as np

    milliseconds = [[1000 * v for v in group] for group in groups]
    value = float(np.quantile(np.concatenate(milliseconds), percent / 100))
    low, high = bootstrap_quantile(milliseconds, percent / 100, seed)
    return Measurement(f"{name}_p{percent}", value, "ms", sum(map(len, groups)), low, high,
                       {**conditions, "requests_measured": len(groups)})
