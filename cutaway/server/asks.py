"""What clients may ask for text: the bodies of chat and completions, with every cap in the schema.

Names are the public interface's; ``top_k``, ``min_p`` and ``repetition_penalty`` are vLLM's. What changes nothing here
(``user``, ``metadata``, ``store`` and their like) is taken; what would change an answer and is not honoured is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from cutaway.generate.request import COLDEST
from cutaway.server import agreements
from cutaway.server.limits import (
    BIASES,
    CHOICES,
    MESSAGES,
    NAME_LETTERS,
    PROMPTS,
    STOP_LETTERS,
    STOPS,
    TOOLS,
    TOP_LOGPROBS,
)
from cutaway.settings import Settings

Name = Annotated[str, Field(min_length=1, max_length=NAME_LETTERS)]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)  # 2.0 is an integer to JSON
Count = Annotated[int, Field(ge=1), _WHOLE]
TopK = Annotated[int, Field(ge=-1), _WHOLE]  # -1 and 0: all, as vLLM's
Choices = Annotated[int, Field(ge=1, le=CHOICES), _WHOLE]
Likeliest = Annotated[int, Field(ge=0, le=TOP_LOGPROBS), _WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64), _WHOLE]
Id = Annotated[int, Field(ge=0), _WHOLE]
Ids = Annotated[tuple[Id, ...], Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=STOP_LETTERS)]
Stop = StopText | Annotated[tuple[StopText, ...], Field(max_length=STOPS)]
Tier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
TokenText = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
Biases = Annotated[dict[TokenText, Annotated[float, Field(ge=-100, le=100)]],
                   Field(max_length=BIASES, json_schema_extra={"additionalProperties": False})]


def _draws(value: float) -> float:
    if 0 < value < COLDEST:
        raise ValueError(f"must be 0 (the likeliest token) or at least {COLDEST}")
    return value


def _no(value: bool) -> bool:
    if value:
        raise ValueError("true is not supported; leave it out")
    return value


Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_draws), WithJsonSchema(
    {"anyOf": [{"const": 0}, {"type": "number", "minimum": COLDEST, "maximum": 2}]})]
No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]  # Literal takes a 0


class StreamOptions(Settings):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: No | None = None


class Drawing(Settings):
    """How tokens are drawn, and what is common to all that write."""

    model: Name
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: TopK | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Biases | None = None
    seed: Seed | None = None
    n: Choices | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Tier | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None

    @model_validator(mode="after")
    def _streams(self) -> Drawing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


class TextPart(Settings):
    """A part of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Settings):
    """What a model asked to be called; ``arguments`` is JSON in a string."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str


class ToolCall(Settings):
    """A call of a message of the assistant."""

    id: str
    type: Literal["function"]
    function: FunctionCall


Content = str | Annotated[tuple[TextPart, ...], Field(min_length=1)]
Nothing = Annotated[tuple[str, ...], Field(max_length=0)] | None


class SystemMessage(Settings):
    """How to behave."""

    role: Literal["system"]
    content: Content


class DeveloperMessage(Settings):
    """The same by its newer name; templates know it as the system's."""

    role: Literal["developer"]
    content: Content


class UserMessage(Settings):
    """What a person says. There is no ``name``: chat templates have no place for it."""

    role: Literal["user"]
    content: Content


class AssistantTurn(Settings):
    """What the model said or called. What an answer's message has besides is taken while it is null."""

    model_config = ConfigDict(json_schema_extra=agreements.TURN)

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(min_length=1)] | None = None
    refusal: None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantTurn:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing: only a message that calls a tool has none")
        return self


class ToolMessage(Settings):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[SystemMessage | DeveloperMessage | UserMessage | AssistantTurn | ToolMessage,
                        Field(discriminator="role")]


def text_of(message: ChatMessage) -> str | None:
    """The content of a message as one text."""
    if message.content is None or isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


class FunctionDefinition(Settings):
    """A function that a model may ask for."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Settings):
    """Functions are the only tools there are."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Settings):
    """Which function."""

    name: str = Field(min_length=1, max_length=64)


class NamedTool(Settings):
    """This function and no other."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(Settings):
    """Plain text."""

    type: Literal["text"]


class JsonFormat(Settings):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Settings):
    """A JSON schema with its name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Settings):
    """JSON as a schema says."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


AnswerFormat = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class ChatAsk(Drawing):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(json_schema_extra=agreements.CHAT)

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=MESSAGES)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None
    response_format: AnswerFormat | None = None
    tools: Annotated[tuple[Tool, ...], Field(max_length=TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: tuple[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatAsk:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs need logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit; give one")
        if self.tool_choice is not None and self.tool_choice != "none" and not self.tools:
            raise ValueError("tool_choice needs tools")
        if self.response_format is not None and self.response_format.type != "text":
            if self.stops:
                raise ValueError("stop strings could cut what response_format asks for; leave one of them out")
            if self.tools and self.tool_choice != "none":
                raise ValueError("an answer is a call or has a response_format: give one, or tool_choice: none")
        return self


class CompletionAsk(Drawing):
    """POST /v1/completions. For a model that reads a source the prompt is what it reads."""

    model_config = ConfigDict(json_schema_extra=agreements.COMPLETION)

    prompt: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=PROMPTS)] | Ids | Annotated[
        tuple[Ids, ...], Field(min_length=1, max_length=PROMPTS)]
    echo: bool | None = None
    logprobs: Likeliest | None = None
    best_of: Choices | None = None

    @model_validator(mode="after")
    def _agree(self) -> CompletionAsk:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not supported; ask for n and choose yourself")
        return self

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Each prompt, a text or ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return (tuple(i for i in self.prompt if isinstance(i, int)),)
        return tuple(p for p in self.prompt if not isinstance(p, int))


_NO_FUNCTIONS = "describe functions as tools"
CHAT_UNSUPPORTED = {
    "functions": _NO_FUNCTIONS, "function_call": _NO_FUNCTIONS, "audio": "only text is written",
    "reasoning_effort": "leave it out", "verbosity": "leave it out", "prediction": "leave it out",
    "web_search_options": "leave it out", "moderation": "leave it out", "prompt_cache_options": "leave it out"}
COMPLETION_UNSUPPORTED = {"suffix": "ask a model that fills gaps, or leave it out"}
