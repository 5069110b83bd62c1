"""POST /tokenize, /detokenize, /render: texts as tokens and back, and the exact prompt that a request becomes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cutaway.errors import CutawayError
from cutaway.server.answers_other import (
    DetokenizeAnswer,
    RenderAnswer,
    RenderedPrompt,
    ShownToken,
    TokenizeAnswer,
)
from cutaway.server.asks import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED, ChatAsk, CompletionAsk
from cutaway.server.asks_other import DetokenizeAsk, TokenizeAsk
from cutaway.server.body import decode, parsed, read
from cutaway.server.opened import Language
from cutaway.server.problem import Problem
from cutaway.server.prompts import Ids, chat_ids, shown
from cutaway.server.route_chat import chat_plan
from cutaway.server.route_completions import completion_plan
from cutaway.server.service import Service
from cutaway.server.writing import Plan
from cutaway.text.tokenizer import Tokenizer


async def tokenize(request: Request, service: Service) -> Response:
    """The ids of a text or of a conversation."""
    ask = await service.ask(request, TokenizeAsk)
    tokenizer, context = await service.shelf.tokenizer(ask.model)
    ids = await service.aside(lambda: _ids(ask, tokenizer))
    names = await service.aside(lambda: [tokenizer.name_of(i) for i in ids])
    return JSONResponse(TokenizeAnswer(count=len(ids), max_model_len=context, tokens=list(ids),
                                       token_strs=names).model_dump())


def _ids(ask: TokenizeAsk, tokenizer: Tokenizer) -> Ids:
    if ask.messages is not None:
        return chat_ids(ask.messages, ask.tools or (), tokenizer)
    assert ask.prompt is not None
    try:
        begin = () if ask.add_special_tokens is False else tokenizer.begin_ids
        return (*begin, *tokenizer.encode(ask.prompt))
    except CutawayError as error:
        raise Problem(400, str(error), param="prompt", code="model_unsuited") from None


async def detokenize(request: Request, service: Service) -> Response:
    """The text of ids; control tokens have none."""
    ask = await service.ask(request, DetokenizeAsk)
    tokenizer, _ = await service.shelf.tokenizer(ask.model)
    worst = max(ask.tokens, default=0)
    if worst >= tokenizer.vocab_size:
        raise Problem(400, f"token {worst} is outside the vocabulary of {tokenizer.vocab_size}", param="tokens",
                      code="token_out_of_range")
    text = await service.aside(lambda: tokenizer.decode(ask.tokens))
    return JSONResponse(DetokenizeAnswer(prompt=text).model_dump())


async def render(request: Request, service: Service) -> Response:
    """What the body of a chat or of a completion becomes before a model reads it; nothing is written."""
    data = await read(request, service.limits)
    tree = await service.aside(lambda: parsed(data))
    if not isinstance(tree, dict) or ("messages" in tree) == ("prompt" in tree):
        raise Problem(400, "send the body of a chat (messages) or of a completion (prompt)",
                      code="missing_required_parameter", param="messages")
    if "messages" in tree:
        chat = await service.aside(lambda: decode(ChatAsk, data, CHAT_UNSUPPORTED))
        model = await service.shelf.language(chat.model)
        plan = await service.aside(lambda: chat_plan(chat, model))
    else:
        text = await service.aside(lambda: decode(CompletionAsk, data, COMPLETION_UNSUPPORTED))
        model = await service.shelf.language(text.model)
        plan = await service.aside(lambda: completion_plan(text, model))
    return JSONResponse((await service.aside(lambda: _rendered(plan, model))).model_dump())


def _rendered(plan: Plan, model: Language) -> RenderAnswer:
    prompts = []
    for prompt in plan.prompts:
        text, each = shown(prompt.read, model.tokenizer)
        prompts.append(RenderedPrompt(prompt=text, count=len(each), tokens=[
            ShownToken(id=i, text=name, bytes=list(data)) for i, name, data in each]))
    return RenderAnswer(model=model.name, context_length=model.context_length, prompts=prompts)
