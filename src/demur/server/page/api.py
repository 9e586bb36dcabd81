"""The page as a client of its own server: it asks as anybody does, with the visitor's key, within what is allowed."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from nicegui import ui

from demur.errors import EndpointError
from demur.records import Message

WAIT = httpx2.Timeout(10, read=600)


@dataclass(frozen=True)
class Done:
    """The end of an answer: its id, and what it tells of itself."""

    id: str
    account: dict[str, Any]


class Api:
    """The server that the page came from."""

    def __init__(self, key: str) -> None:
        request = ui.context.client.request
        host, port = request.scope["server"]
        self._base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def models(self) -> list[str]:
        """The model ids that may be asked for.

        Raises:
            EndpointError: the server says no.
        """
        try:
            async with self._open() as http:
                answer = await http.get("/v1/models")
        except httpx2.HTTPError as error:
            raise EndpointError(f"the server does not answer ({error}); load the page again.") from error
        await _check(answer)
        return [m["id"] for m in answer.json()["data"]]

    async def ask(self, model: str, messages: Sequence[Message], max_tokens: int) -> AsyncIterator[str | Done]:
        """An answer as it is written, piece by piece, then its end.

        Raises:
            EndpointError: the server says no, or goes away.
        """
        sent = {
            "model": model,
            "messages": [m.model_dump() for m in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        answer_id, account = "", {}
        try:
            async with self._open() as http, http.stream("POST", "/v1/chat/completions", json=sent) as answer:
                await _check(answer)
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        raise EndpointError(chunk["error"]["message"])
                    answer_id = chunk["id"]
                    account = chunk.get("demur") or account
                    for choice in chunk["choices"]:
                        if text := choice["delta"].get("content"):
                            yield text
        except httpx2.HTTPError as error:
            raise EndpointError(f"the answer broke off ({error}); ask again.") from error
        yield Done(answer_id, account)

    def _open(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self._base, headers=self._headers, timeout=WAIT, trust_env=False)


async def _check(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    await answer.aread()
    try:
        told = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = f"the server answered {answer.status_code}"
    raise EndpointError(told)
