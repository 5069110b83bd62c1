"""How tokens and their log-probabilities are written on the wire: text for people, bytes for who puts them together."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from cutaway.generate.request import Alternative
from cutaway.server.answers import TextLogprobs
from cutaway.server.assemble import Drawn
from cutaway.text.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no minus infinity; the public interface writes this


def entries(drawn: Sequence[Drawn], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens of a chat's answer with their likeliest alternatives."""
    return [{**_token(d.token, d.logprob, tokenizer),
             "top_logprobs": [_token(a.token, a.logprob, tokenizer) for a in d.alternatives]} for d in drawn]


def _token(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token": tokenizer.name_of(token), "bytes": list(tokenizer.bytes_of([token])),
            "logprob": max(logprob, LEAST)}


class TextColumns:
    """The lists of a completion's logprobs, part by part; offsets run on in letters from ``at``. A letter of several
    tokens counts with its last."""

    def __init__(self, tokenizer: Tokenizer, *, best: bool, at: int = 0) -> None:
        self._tokenizer, self._best, self._at = tokenizer, best, at
        self._letters = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[int], logprobs: Sequence[float | None],
           alternatives: Sequence[Sequence[Alternative]]) -> TextLogprobs:
        """The next tokens; None is a first token, which nothing was asked of."""
        names = [self._tokenizer.name_of(t) for t in tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(self._letters.decode(self._tokenizer.bytes_of([token])))
        top = [None if logprob is None else {self._tokenizer.name_of(a.token): max(a.logprob, LEAST) for a in best}
               for logprob, best in zip(logprobs, alternatives, strict=True)]
        return TextLogprobs(tokens=names, token_logprobs=[None if x is None else max(x, LEAST) for x in logprobs],
                            top_logprobs=top if self._best else None, text_offset=offsets)

    def drawn(self, drawn: Sequence[Drawn]) -> TextLogprobs:
        """The next tokens of an answer."""
        return self.of([d.token for d in drawn], [d.logprob for d in drawn], [d.alternatives for d in drawn])
