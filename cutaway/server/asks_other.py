"""What clients may ask besides chat and completions: vectors, labels, an order of documents, tokens, responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from cutaway.server import agreements
from cutaway.server.asks import (
    ChatMessage,
    Count,
    Id,
    Ids,
    JsonFormat,
    Likeliest,
    Name,
    No,
    Temperature,
    Tier,
    Tool,
)
from cutaway.server.limits import DOCUMENTS, INPUTS, MESSAGES
from cutaway.settings import Settings

Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=INPUTS)]


class EmbeddingAsk(Settings):
    """POST /v1/embeddings."""

    model: Name
    input: Texts | Ids | Annotated[tuple[Ids, ...], Field(min_length=1, max_length=INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """Each input, a text or ids."""
        if isinstance(self.input, str):
            return (self.input,)
        if isinstance(self.input[0], int):
            return (tuple(i for i in self.input if isinstance(i, int)),)
        return tuple(i for i in self.input if not isinstance(i, int))


class RerankAsk(Settings):
    """POST /v1/rerank, as Jina's and Cohere's."""

    model: Name
    query: Text
    documents: Annotated[tuple[Text, ...], Field(min_length=1, max_length=DOCUMENTS)]
    top_n: Count | None = None
    return_documents: bool | None = None


class ClassifyAsk(Settings):
    """POST /v1/classify, as vLLM's."""

    model: Name
    input: Texts
    user: str | None = None


class TokenizeAsk(Settings):
    """POST /tokenize: a text as it is (``prompt``), or a conversation by the chat template (``messages``)."""

    model_config = ConfigDict(json_schema_extra=agreements.TOKENIZE)

    model: Name
    prompt: str | None = None
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MESSAGES)] | None = None
    tools: tuple[Tool, ...] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeAsk:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of them")
        if self.messages is None and self.tools is not None:
            raise ValueError("tools stand beside messages")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens is for a prompt; a chat template writes its own")
        return self


class DetokenizeAsk(Settings):
    """POST /detokenize."""

    model: Name
    tokens: tuple[Id, ...] = Field(max_length=1 << 18)


class InputText(Settings):
    """A part of a message of the Responses API."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[tuple[str, ...], Field(max_length=0)] | None = None
    logprobs: Annotated[tuple[str, ...], Field(max_length=0)] | None = None


class InputMessage(Settings):
    """A turn of the Responses API; ``id`` and ``status`` are those of an answer that is sent back."""

    role: Literal["developer", "system", "user", "assistant"]
    content: str | tuple[InputText, ...]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class PlainFormat(Settings):
    """Plain text."""

    type: Literal["text"]


class FlatSchema(Settings):
    """JSON as a schema says, laid out as the Responses API does."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Settings):
    """What form the text has."""

    format: Annotated[PlainFormat | JsonFormat | FlatSchema, Field(discriminator="type")] | None = None


class ResponseAsk(Settings):
    """POST /v1/responses: one answer, nothing kept."""

    model_config = ConfigDict(json_schema_extra=agreements.RESPONSE)

    model: Name
    input: Text | Annotated[tuple[InputMessage, ...], Field(min_length=1, max_length=MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: Likeliest | None = None
    text: TextSettings | None = None
    truncation: Literal["disabled"] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: No | None = None
    include: Annotated[tuple[Literal["message.output_text.logprobs"], ...], Field(max_length=1)] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[tuple[str, ...], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Tier | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponseAsk:
        if self.top_logprobs and not self.include:
            raise ValueError("top_logprobs need include: ['message.output_text.logprobs']")
        return self


RESPONSE_UNSUPPORTED = {
    "previous_response_id": "nothing is kept here; send the whole conversation as input",
    "conversation": "nothing is kept here; send the whole conversation as input", "prompt": "send the text as input",
    "reasoning": "leave it out", "max_tool_calls": "leave it out", "stream_options": "leave it out",
    "moderation": "leave it out", "prompt_cache_options": "leave it out"}
