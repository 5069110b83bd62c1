"""POST /v1/completions: texts continued, or, by a model that reads a source, what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.server.answers import CompletionAnswer, TextChoice, TextLogprobs
from cutaway.server.asks import COMPLETION_UNSUPPORTED, CompletionAsk
from cutaway.server.assemble import Delta
from cutaway.server.opened import Language
from cutaway.server.problem import Problem
from cutaway.server.prompts import Prompt, check_biases, check_room, text_prompt
from cutaway.server.service import Service, new_id, now
from cutaway.server.stream import DONE, EventStream, event
from cutaway.server.writing import Plan, Writing, sampling_of, seed_of
from cutaway.server.written import TextColumns

SHORT = 16  # max_tokens where none is given: the public interface's


async def completions(request: Request, service: Service) -> Response:
    """Answer it. Raises Problem for what cannot be served."""
    ask = await service.ask(request, CompletionAsk, COMPLETION_UNSUPPORTED)
    model = await service.shelf.language(ask.model)
    plan = await service.aside(lambda: completion_plan(ask, model))
    work = _Continued(ask, Writing(service, plan, request))
    return await (work.streamed() if ask.stream else work.whole())


def completion_plan(ask: CompletionAsk, model: Language) -> Plan:
    """What the prompts become. Raises Problem for one that the model cannot take."""
    if model.reads_source and ask.echo:
        raise Problem(400, f"{model.name} writes beside what it reads, and has nothing to echo", param="echo",
                      code="model_unsuited")
    check_biases(ask.logit_bias, model.vocab_size)
    most = SHORT if ask.max_tokens is None else ask.max_tokens
    prompts = tuple(text_prompt(given, model.tokenizer, reads_source=model.reads_source) for given in ask.prompts)
    for at, prompt in enumerate(prompts):
        check_room(prompt, most, context_length=model.context_length, vocab_size=model.vocab_size,
                   param="prompt" if len(prompts) == 1 else f"prompt[{at}]")
    return Plan(model, prompts, most, sampling_of(ask), seed_of(ask), ask.n or 1, ask.stops, ask.logprobs,
                ask.logprobs if ask.echo else None,
                shaves=model.reads_source and model.tokenizer.spelling.spaced)


@dataclass(eq=False, slots=True)
class _Continued:
    """Continuations on their way; choice k of prompt i is number ``i * n + k``."""

    ask: CompletionAsk
    writing: Writing
    id: str = field(default_factory=lambda: new_id("cmpl-"))
    created: int = field(default_factory=now)
    columns: list[TextColumns] = field(init=False)
    echoed: set[int] = field(default_factory=set)
    ended: int = 0  # choices whose end was sent

    def __post_init__(self) -> None:
        self.columns = [TextColumns(self.writing.plan.model.tokenizer, best=bool(self.ask.logprobs))
                        for _ in self.writing.choices]

    async def whole(self) -> Response:
        """All of them when they are complete."""
        try:
            choices = [self._choice(index, delta) for index, delta in enumerate(await self.writing.whole())]
            answer = CompletionAnswer(id=self.id, created=self.created, model=self.ask.model, choices=choices,
                                      usage=self.writing.usage, system_fingerprint=self.writing.fingerprint,
                                      seed=self.writing.plan.seed, reproducible=self.writing.call.exact,
                                      timings=self.writing.timings)
        finally:
            self.writing.close()
        return JSONResponse(answer.model_dump())

    async def streamed(self) -> Response:
        """As they come."""
        return await EventStream(self.writing, begin=lambda: (), each=self._each, end=self._end).begun()

    def _choice(self, index: int, delta: Delta) -> TextChoice:
        """What a step added, behind the prompt where it is echoed and this is the first."""
        text, logs = delta.text, None
        begin = self._echo(index) if self.ask.echo and index not in self.echoed else None
        if self.ask.logprobs is not None:
            columns = self.columns[index]
            before = self._prompt_logs(index) if begin is not None else None
            logs = columns.drawn(delta.drawn)
            logs = logs if before is None else _behind(before, logs)
        return TextChoice(index=index, text=(begin or "") + text, logprobs=logs,
                          finish_reason="length" if delta.finish == "length" else "stop" if delta.finish else None)

    def _prompt(self, index: int) -> Prompt:
        return self.writing.plan.prompts[index // self.writing.plan.n]

    def _echo(self, index: int) -> str:
        self.echoed.add(index)
        given = self.ask.prompts[index // self.writing.plan.n]
        return given if isinstance(given, str) else self.writing.plan.model.tokenizer.decode(given)

    def _prompt_logs(self, index: int) -> TextLogprobs:
        tokens = self._prompt(index).tokens
        scores = self.writing.prompt_scores.get(index // self.writing.plan.n)
        if scores is None:
            raise Problem(500, "the engine gave no log-probabilities of the prompt")
        return self.columns[index].of(tokens, [None, *scores.logprobs], [(), *(scores.alternatives or
                                                                            [()] * len(scores.logprobs))])

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.ask.model,
                "system_fingerprint": self.writing.fingerprint}

    @property
    def _counts(self) -> bool:
        return bool(self.ask.stream_options and self.ask.stream_options.include_usage)

    def _each(self, index: int, delta: Delta) -> Iterator[bytes]:
        choice = self._choice(index, delta)
        if not (choice.text or choice.finish_reason or (choice.logprobs and choice.logprobs.tokens)):
            return
        self.ended += delta.finish is not None
        over = delta.finish is not None and self.ended == len(self.writing.choices)
        yield event({**self._head(), "choices": [choice.model_dump()], **({"usage": None} if self._counts else {}),
                     **(self._tail() if over and not self._counts else {})})

    def _tail(self) -> dict[str, Any]:
        return self.writing.tail

    def _end(self) -> Iterator[bytes]:
        if self._counts:
            yield event({**self._head(), "choices": [], "usage": self.writing.usage.model_dump(), **self._tail()})
        yield DONE


def _behind(first: TextLogprobs, second: TextLogprobs) -> TextLogprobs:
    top = None if first.top_logprobs is None else [*first.top_logprobs, *(second.top_logprobs or [])]
    return TextLogprobs(tokens=[*first.tokens, *second.tokens], top_logprobs=top,
                        token_logprobs=[*first.token_logprobs, *second.token_logprobs],
                        text_offset=[*first.text_offset, *second.text_offset])
