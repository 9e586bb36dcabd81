"""What all parts of one answer have in common: its id, its account, its log line, and how it is streamed."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from demur.models.load import LanguageModel
from demur.records import Message
from demur.server.answers import Answered
from demur.server.dialect import Usage
from demur.server.engine import Ended
from demur.server.explaining import Account, account
from demur.server.keys import Caller
from demur.server.offer import Picked
from demur.server.orders import ClientLeftError, Order
from demur.server.problems import ApiError, body
from demur.server.serving import Serving

EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Answer:
    """What all parts of one answer have in common."""

    def __init__(
        self, serving: Serving, request: Request, caller: Caller, picked: Picked,
        messages: tuple[Message, ...], id_: str, prompt_tokens: int,
    ) -> None:  # fmt: skip
        self.serving, self.request, self.caller, self.picked = serving, request, caller, picked
        self.messages, self.id, self.prompt_tokens, self.created = messages, id_, prompt_tokens, int(time.time())
        self.fingerprint = f"{serving.lm.hash}-{picked.hash}"
        request.state.facts.update(id=id_, policy=picked.name, policy_hash=picked.hash, policy_level=picked.level)

    def usage(self, ended: list[Ended]) -> Usage:
        """Tokens read and written."""
        made = sum(e.tokens for e in ended)
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=made, total_tokens=self.prompt_tokens + made)

    async def finished(self, ended: list[Ended]) -> list[Account]:
        """The account of each choice; counted, logged, and told to whoever listens."""
        accounts = [account(self.picked, e.text, e.tokens, e.finish, e.steering) for e in ended]
        for e, a in zip(ended, accounts, strict=True):
            self.serving.metrics.answers.labels(a.policy, a.level, str(a.open).lower(), e.finish).inc()
        facts = {"prompt_tokens": self.prompt_tokens, "reply_tokens": sum(e.tokens for e in ended)}
        facts |= {"gate": accounts[0].gate, "open": [a.open for a in accounts]}
        if self.serving.settings.log_text:
            facts |= {"messages": [m.model_dump() for m in self.messages], "replies": [e.text for e in ended]}
        self.request.state.facts.update(facts)
        await self.serving.tell(
            Answered(
                id=self.id,
                created=self.created,
                caller=self.caller.name,
                model=self.picked.model,
                policy=self.picked.name,
                policy_hash=self.picked.hash,
                level=self.picked.level,
                messages=self.messages,
                replies=tuple(e.text for e in ended),
                demur=tuple(a.model_dump(mode="json") for a in accounts),
            )
        )
        return accounts

    async def streamed(self, order: Order, chunks: AsyncIterator[dict[str, Any]]) -> Response:
        """Server-sent events; the status is sent once something has come, so that what fails before has its own."""
        try:
            first = await anext(chunks)
        except ClientLeftError:
            return Response(status_code=499)
        order.unwatch()  # from here on starlette does

        async def lines() -> AsyncIterator[bytes]:
            try:
                yield line(first)
                async for chunk in chunks:
                    yield line(chunk)
                yield b"data: [DONE]\n\n"
            except ClientLeftError:
                return
            except ApiError as error:
                yield line(body(error.status, str(error), error.code))
            finally:
                order.give_up()

        return StreamingResponse(lines(), media_type="text/event-stream", headers=EVENTS)


def line(chunk: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def spelled(lm: LanguageModel, token: int) -> str:
    """A token's text."""
    return lm.tokenizer.decode([token])
