"""What clients are answered besides text: vectors, labels, an order of documents, tokens, models, health."""

from __future__ import annotations

from typing import Literal

from cutaway.server.answers import Answer, Timings


class Embedding(Answer):
    """A vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class ReadUsage(Answer):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: ReadUsage
    timings: Timings


class RankedDocument(Answer):
    """The document itself."""

    text: str


class Ranked(Answer):
    """How near a document is to the query: the cosine of their vectors."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(Answer):
    """Documents, the nearest first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: ReadUsage
    timings: Timings


class Classified(Answer):
    """A text's label; ``labels`` says what each of ``probs`` stands for. Where a text may have any number of labels
    ``label`` is null, ``given`` those of a probability above one half, and ``probs`` do not sum to one."""

    index: int
    label: str | None
    given: list[str]
    probs: list[float]
    num_classes: int


class ClassifyAnswer(Answer):
    """Labels in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str]
    data: list[Classified]
    usage: ReadUsage | None
    timings: Timings


class TokenizeAnswer(Answer):
    """Ids, and how each is written."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str]


class DetokenizeAnswer(Answer):
    """The text; what is not UTF-8 shows as U+FFFD."""

    prompt: str


class ShownToken(Answer):
    """A token of a prompt: a control token has a name and no bytes."""

    id: int
    text: str
    bytes: list[int]


class RenderedPrompt(Answer):
    """What a model reads."""

    prompt: str
    count: int
    tokens: list[ShownToken]


class RenderAnswer(Answer):
    """The prompts that a request becomes, control tokens by their names, and the room that they leave."""

    model: str
    context_length: int
    prompts: list[RenderedPrompt]


class ModelCard(Answer):
    """A model that is served; an adapter's ``parent`` is the name of its base, where that is served, too."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cutaway"
    parent: str | None = None


class ModelList(Answer):
    """Every model that is served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Answer):
    """``models`` that are open, and how they are."""

    status: Literal["ok", "ready", "unavailable"]
    models: dict[str, str] | None = None
