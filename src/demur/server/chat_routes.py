"""`POST /v1/chat/completions`."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from demur.models.load import LanguageModel
from demur.server.answering import Answer, spelled
from demur.server.asking import chat_tokens, check_choices, ordered, picked_for, sampling_for
from demur.server.dialect import ChatAnswer, ChatChoice, ChatLogprobs, ChatRequest, Said, TokenLogprob, TopLogprob
from demur.server.engine import Ended, Piece
from demur.server.explaining import account
from demur.server.keys import Caller
from demur.server.limits import metered
from demur.server.orders import ClientLeftError, Order
from demur.server.problems import RESPONSES
from demur.server.sampling import TokenScore
from demur.server.serving import Serving

routes = APIRouter(tags=["OpenAI"], responses=RESPONSES)


@routes.post("/v1/chat/completions", response_model=ChatAnswer)
async def chat(asked: ChatRequest, request: Request, caller: Annotated[Caller, Depends(metered("user"))]) -> Any:
    """Writes the next turn of a conversation."""
    serving: Serving = request.app.state.serving
    picked = picked_for(serving, asked)
    check_choices(serving, asked, 1)
    messages = tuple(turn.message for turn in asked.messages)
    prompt = await chat_tokens(serving, picked, messages)
    most = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    how = sampling_for(serving, asked, [prompt], most, top)
    order = ordered(serving, request, asked, picked, [prompt], how, strip=True)
    answer = Answer(serving, request, caller, picked, messages, f"chatcmpl-{uuid.uuid4().hex}", len(prompt[0]))
    if asked.stream:
        return await answer.streamed(order, chat_chunks(answer, order, asked))
    try:
        ended = await order.ended()
    except ClientLeftError:
        return Response(status_code=499)
    accounts = await answer.finished(ended)
    return ChatAnswer(
        id=answer.id,
        created=answer.created,
        model=picked.model,
        choices=[
            ChatChoice(
                index=e.choice,
                message=Said(content=e.text),
                logprobs=_logprobs(serving.lm, e.scores) if top is not None else None,
                finish_reason=e.finish,
                demur=a if asked.demur.explain and len(ended) > 1 else None,
            )
            for e, a in zip(ended, accounts, strict=True)
        ],
        usage=answer.usage(ended),
        system_fingerprint=answer.fingerprint,
        demur=accounts[0] if asked.demur.explain else None,
    )


async def chat_chunks(answer: Answer, order: Order, asked: ChatRequest) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer; the account comes with a choice's last."""
    lm, counted = answer.serving.lm, bool(asked.stream_options and asked.stream_options.include_usage)
    head = {"id": answer.id, "object": "chat.completion.chunk", "created": answer.created, "model": answer.picked.model}
    head |= {"system_fingerprint": answer.fingerprint, **({"usage": None} if counted else {})}
    begun: set[int] = set()
    ended: list[Ended] = []

    def chunk(choice: int, delta: dict[str, str], scores: tuple[TokenScore, ...], finish: str | None) -> dict[str, Any]:
        told = _logprobs(lm, scores).model_dump() if asked.logprobs and scores else None
        return head | {"choices": [{"index": choice, "delta": delta, "logprobs": told, "finish_reason": finish}]}

    async for event in order.rest():
        text = event.text if isinstance(event, Piece) else event.rest if isinstance(event, Ended) else ""
        if event.choice not in begun:
            begun.add(event.choice)
            yield chunk(event.choice, {"role": "assistant", "content": ""}, (), None)
        if text or event.scores:  # type: ignore[union-attr]
            yield chunk(event.choice, {"content": text}, event.scores, None)  # type: ignore[union-attr]
        if isinstance(event, Ended):
            ended.append(event)
            last = chunk(event.choice, {}, (), event.finish)
            if order.open:
                told = account(answer.picked, event.text, event.tokens, event.finish, event.steering)
            else:
                ended.sort(key=lambda e: e.choice)
                accounts = await answer.finished(ended)
                told = accounts[ended.index(event)]
            yield last | ({"demur": told.model_dump(mode="json")} if asked.demur.explain else {})
    if counted:
        yield head | {"choices": [], "usage": answer.usage(ended).model_dump()}


def _logprobs(lm: LanguageModel, scores: tuple[TokenScore, ...]) -> ChatLogprobs:
    def told(token: int, logprob: float) -> dict[str, Any]:
        text = spelled(lm, token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    return ChatLogprobs(
        content=[
            TokenLogprob(
                **told(s.token, s.logprob if s.logprob is not None else 0.0),
                top_logprobs=[TopLogprob(**told(t, p)) for t, p in s.top],
            )
            for s in scores
        ]
    )
