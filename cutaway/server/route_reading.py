"""POST /v1/embeddings, /v1/rerank, /v1/classify: texts read whole; vectors, an order of documents, or labels."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.models.classifier import Classifier
from cutaway.models.reading import Ids, framed_rows, longer
from cutaway.models.text_classifier import TextClassifier, TextEmbedder
from cutaway.server.answers import (
    Timings,
)
from cutaway.server.answers_other import (
    Classified,
    ClassifyAnswer,
    Embedding,
    EmbeddingAnswer,
    Ranked,
    RankedDocument,
    ReadUsage,
    RerankAnswer,
)
from cutaway.server.asks_other import ClassifyAsk, EmbeddingAsk, RerankAsk
from cutaway.server.limits import INPUT_TOKENS
from cutaway.server.problem import Problem
from cutaway.server.service import Service, new_id, now, spent

Floats = NDArray[np.float64]


async def embeddings(request: Request, service: Service) -> Response:
    """Vectors in the order of the inputs. Raises Problem for what does not fit the context."""
    ask = await service.ask(request, EmbeddingAsk)
    model = await service.shelf.embedder(ask.model)
    width = model.what.width
    if ask.dimensions is not None and ask.dimensions != width:
        raise Problem(400, f"{ask.model} gives {width} dimensions and was not made to be cut to {ask.dimensions}",
                      param="dimensions", code="model_unsuited")

    first = model.what
    with model.attended():
        rows = await service.aside(lambda: rows_of(ask.inputs, first))
        tokens = sum(map(len, rows))
        with spent(request, tokens) as taken:
            vectors, waited, took = await model.run(
                request.receive, taken.on(lambda embedder: embedder.vectors_of_rows(rows)))
    wanted = ask.encoding_format or "float"
    data = [Embedding(index=i, embedding=encoded(vector) if wanted == "base64" else as_floats(vector))
            for i, vector in enumerate(vectors)]
    service.metrics.prompt.labels(ask.model).inc(tokens)
    return JSONResponse(EmbeddingAnswer(data=data, model=ask.model, usage=_usage(tokens),
                                        timings=_timings(waited, took)).model_dump())


async def rerank(request: Request, service: Service) -> Response:
    """Documents by the cosine of their vector with the query's, the nearest first; equals in their order."""
    ask = await service.ask(request, RerankAsk)
    model = await service.shelf.embedder(ask.model)

    def read(embedder: TextEmbedder) -> Floats:
        vectors = embedder.vectors_of_rows(rows)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        return np.asarray(unit[1:] @ unit[0], np.float64)

    first = model.what
    with model.attended():
        rows = await service.aside(lambda: rows_of((ask.query, *ask.documents), first, names=("query", "documents")))
        tokens = sum(map(len, rows))
        with spent(request, tokens) as taken:
            scores, waited, took = await model.run(request.receive, taken.on(read))
    best = np.argsort(-scores, kind="stable")[: ask.top_n]
    results = [Ranked(index=int(i), relevance_score=float(scores[i]),
                      document=RankedDocument(text=ask.documents[i]) if ask.return_documents else None) for i in best]
    service.metrics.prompt.labels(ask.model).inc(tokens)
    return JSONResponse(RerankAnswer(id=new_id("rerank-"), model=ask.model, results=results, usage=_usage(tokens),
                                     timings=_timings(waited, took)).model_dump())


async def classify(request: Request, service: Service) -> Response:
    """The label of each text with the probabilities of all."""
    ask = await service.ask(request, ClassifyAsk)
    model = await service.shelf.classifier(ask.model)
    texts = (ask.input,) if isinstance(ask.input, str) else ask.input

    first = model.what
    with model.attended():
        tokens = await service.aside(lambda: _counted(texts, first))
        with spent(request, tokens or 0) as taken:
            scores, waited, took = await model.run(
                request.receive, taken.on(lambda classifier: classifier.scores(texts)))
    labels, several = list(model.what.labels), model.what.multi_label
    data = [labelled(i, row, labels, several=several) for i, row in enumerate(scores)]
    service.metrics.prompt.labels(ask.model).inc(tokens or 0)
    return JSONResponse(ClassifyAnswer(id=new_id("classify-"), created=now(), model=ask.model, labels=labels, data=data,
                                       usage=None if tokens is None else _usage(tokens),
                                       timings=_timings(waited, took)).model_dump())


def _counted(texts: Sequence[str], classifier: Classifier) -> int | None:
    """The tokens of texts that a classifier reads; None where it has none. Raises Problem for one that is too long."""
    if not isinstance(classifier, TextClassifier):
        return None
    rows = framed_rows(texts, classifier.tokenizer)
    _check(rows, classifier.model.context_length, ("input",))
    return sum(map(len, rows))


def labelled(index: int, scores: Floats, labels: Sequence[str], *, several: bool) -> Classified:
    """One text's labels from its log-probabilities, or log-odds where it may have ``several``."""
    shares = 1 / (1 + np.exp(-np.clip(scores, -700, 700))) if several else np.exp(scores)
    given = [label for label, score in zip(labels, scores, strict=True) if score > 0] if several else [
        labels[int(scores.argmax())]]
    return Classified(index=index, label=None if several else given[0], given=given, probs=[float(s) for s in shares],
                      num_classes=len(labels))


def rows_of(inputs: Sequence[str | tuple[int, ...]], embedder: TextEmbedder,
            names: tuple[str, ...] = ("input",)) -> list[Ids]:
    """The framed ids of each input. Raises Problem with both numbers for one that does not fit, and for too many."""
    tokenizer = embedder.tokenizer
    texts = [given for given in inputs if isinstance(given, str)]
    if len(texts) == len(inputs):
        rows = framed_rows(texts, tokenizer)
    else:
        for at, given in enumerate(inputs):
            if (worst := max(i for i in given if isinstance(i, int))) >= embedder.model.vocab_size:
                raise Problem(400, f"token {worst} is outside the vocabulary of {embedder.model.vocab_size}",
                              param=f"input[{at}]", code="token_out_of_range")
        rows = [np.array((*tokenizer.begin_ids, *given, *tokenizer.finish_ids), np.int64) for given in inputs]
    _check(rows, embedder.model.context_length, names)
    return rows


def _check(rows: Sequence[Ids], context: int, names: tuple[str, ...]) -> None:
    if found := longer(rows, context):
        at = found[0]
        param = names[0] if len(names) > 1 and at == 0 else f"{names[-1]}[{at - len(names) + 1}]"
        raise Problem(400, f"this model's context is {context} tokens, and {param} has {len(rows[at])}; shorten it",
                      code="context_length_exceeded", param=param)
    if (total := sum(map(len, rows))) > INPUT_TOKENS:
        raise Problem(400, f"a request may have {INPUT_TOKENS:,} tokens, and this one has {total:,}; send several",
                      code="context_length_exceeded", param=names[-1])


def encoded(vector: Floats) -> str:
    """A vector as base64 of little-endian float32, which the official client asks for."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def as_floats(vector: Floats) -> list[float]:
    """The same float32 numbers as JSON."""
    return [float(x) for x in np.asarray(vector, np.float32)]


def _usage(tokens: int) -> ReadUsage:
    return ReadUsage(prompt_tokens=tokens, total_tokens=tokens)


def _timings(waited: float, took: float) -> Timings:
    return Timings(queue_ms=round(1000 * waited, 3), prefill_ms=round(1000 * took, 3), decode_ms=None,
                   tokens_per_second=None)
