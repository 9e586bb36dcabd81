"""`POST /v1/completions`: bare text goes on. What is scored with `echo` is the prompt as it stands, under the policy."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from demur.models.load import LanguageModel
from demur.records import Message
from demur.server.answering import Answer, spelled
from demur.server.asking import check_choices, ordered, picked_for, sampling_for, text_tokens
from demur.server.dialect import TextAnswer, TextChoice, TextLogprobs, TextRequest
from demur.server.engine import Ended, Piece
from demur.server.explaining import account
from demur.server.keys import Caller
from demur.server.limits import metered
from demur.server.orders import ClientLeftError, Order
from demur.server.problems import RESPONSES
from demur.server.sampling import TokenScore
from demur.server.serving import Serving

routes = APIRouter(tags=["OpenAI"], responses=RESPONSES)


@routes.post("/v1/completions", response_model=TextAnswer)
async def complete(asked: TextRequest, request: Request, caller: Annotated[Caller, Depends(metered("user"))]) -> Any:
    """Goes on with a text, or with several."""
    serving: Serving = request.app.state.serving
    picked = picked_for(serving, asked)
    check_choices(serving, asked, len(asked.prompts))
    prompts = await text_tokens(serving, asked.prompts)
    most = asked.max_tokens if asked.max_tokens is not None else 16
    how = sampling_for(serving, asked, prompts, most, asked.logprobs)
    texts = [p if isinstance(p, str) else serving.lm.tokenizer.decode(p) for p in asked.prompts]
    scoring = asked.echo and asked.logprobs is not None
    order = ordered(serving, request, asked, picked, prompts, how, strip=False, echo=scoring)
    messages = tuple(Message(role="user", content=t) for t in texts)
    read = sum(len(ids) for ids, _ in prompts)
    answer = Answer(serving, request, caller, picked, messages, f"cmpl-{uuid.uuid4().hex}", read)
    echoed = texts if asked.echo else [""] * len(texts)
    if asked.stream:
        return await answer.streamed(order, text_chunks(answer, order, asked, echoed))
    try:
        ended = await order.ended()
    except ClientLeftError:
        return Response(status_code=499)
    accounts = await answer.finished(ended)
    n = asked.n or 1
    return TextAnswer(
        id=answer.id,
        created=answer.created,
        model=picked.model,
        choices=[
            TextChoice(
                index=e.choice,
                text=echoed[e.choice // n] + e.text,
                logprobs=_logprobs(serving.lm, (*e.prompt_scores, *e.scores)) if asked.logprobs is not None else None,
                finish_reason=e.finish,
                demur=a if asked.demur.explain and len(ended) > 1 else None,
            )
            for e, a in zip(ended, accounts, strict=True)
        ],
        usage=answer.usage(ended),
        system_fingerprint=answer.fingerprint,
        demur=accounts[0] if asked.demur.explain else None,
    )


async def text_chunks(
    answer: Answer, order: Order, asked: TextRequest, echoed: Sequence[str]
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer; the account comes with a choice's last."""
    lm, counted = answer.serving.lm, bool(asked.stream_options and asked.stream_options.include_usage)
    head = {"id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.picked.model}
    head |= {"system_fingerprint": answer.fingerprint, **({"usage": None} if counted else {})}
    begun: set[int] = set()
    ended: list[Ended] = []
    async for event in order.rest():
        if not isinstance(event, Piece | Ended):
            continue
        text = event.text if isinstance(event, Piece) else event.rest
        if event.choice not in begun:
            begun.add(event.choice)
            text = echoed[event.choice // (asked.n or 1)] + text
        told = _logprobs(lm, event.scores).model_dump() if asked.logprobs is not None and event.scores else None
        choice = {"index": event.choice, "text": text, "logprobs": told, "finish_reason": None}
        account_ = {}
        if isinstance(event, Ended):
            ended.append(event)
            choice["finish_reason"] = event.finish
            if not order.open:
                await answer.finished(sorted(ended, key=lambda e: e.choice))
            if asked.demur.explain:
                seen = account(answer.picked, event.text, event.tokens, event.finish, event.steering)
                account_ = {"demur": seen.model_dump(mode="json")}
        yield head | {"choices": [choice]} | account_
    if counted:
        yield head | {"choices": [], "usage": answer.usage(ended).model_dump()}


def _logprobs(lm: LanguageModel, scores: Sequence[TokenScore]) -> TextLogprobs:
    tokens, offsets, at = [], [], 0
    for s in scores:
        tokens.append(spelled(lm, s.token))
        offsets.append(at)
        at += len(tokens[-1])
    top: list[dict[str, float] | None] = []
    for s in scores:
        if s.logprob is None:
            top.append(None)
            continue
        likeliest: dict[str, float] = {}
        # Two tokens may be spelled alike; the likelier one keeps the name.
        for token, logprob in (*s.top, (s.token, s.logprob)):
            name = spelled(lm, token)
            likeliest[name] = max(logprob, likeliest.get(name, -9999.0))
        top.append(likeliest)
    said = [max(s.logprob, -9999.0) if s.logprob is not None else None for s in scores]
    return TextLogprobs(tokens=tokens, token_logprobs=said, top_logprobs=top, text_offset=offsets)
