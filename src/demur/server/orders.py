"""The choices of one request, from the queue to the last token; given up when its client leaves or its time is over."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from fastapi import Request

from demur.errors import DemurError
from demur.server.batch import Coded
from demur.server.engine import BusyError, Ended, Engine, Event, Failed, Job, StoppedError
from demur.server.metrics import Metrics
from demur.server.offer import Picked
from demur.server.problems import ApiError
from demur.server.sampling import Sampling

log = logging.getLogger("demur.server")


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Order:
    """One request's choices: `n` for each prompt, numbered prompt by prompt."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        picked: Picked,
        prompts: Sequence[Coded],
        how: Sampling,
        n: int = 1,
        *,
        seconds: float,
        stream: bool = False,
        strip: bool = True,
        echo: bool = False,
        stop_late: bool = False,
    ) -> None:
        """Queues them.

        Raises:
            ApiError: 429 where there is no room, 503 where the engine takes nothing more.
        """
        self.engine, self.metrics = engine, metrics
        loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        """None: the client has left."""
        self.began, self.deadline = loop.time(), loop.time() + seconds
        self.first: float | None = None
        """Seconds until the first text."""
        self.left: asyncio.Task[None] | None = None

        def deliver(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        self.jobs = [
            Job(
                prompt=prompt,
                policy=picked.policy,
                how=how.model_copy(update={"seed": _seed(how.seed, i)}),
                deliver=deliver,
                choice=n * p + i,
                stream=stream,
                strip=strip,
                echo=echo,
                stop_late=stop_late,
            )
            for p, prompt in enumerate(prompts)
            for i in range(n)
        ]
        self.open = len(self.jobs)
        try:
            engine.submit(self.jobs)
        except BusyError as error:
            raise ApiError(429, str(error), "queue_full", headers={"Retry-After": str(error.seconds)}) from error
        except StoppedError as error:
            raise stopped() from error

    async def event(self) -> Event:
        """What comes next.

        Raises:
            ApiError: a choice could not be written, or the time is over.
            ClientLeftError: the client has.
        """
        try:
            async with asyncio.timeout_at(self.deadline):
                event = await self.events.get()
        except TimeoutError as error:
            self.give_up()
            told = "the answer took too long and was given up; ask for fewer tokens."
            raise ApiError(504, told, "timeout") from error
        except BaseException:
            self.give_up()
            raise
        if event is None:
            self.give_up()
            raise ClientLeftError
        if isinstance(event, Failed):
            self.give_up()
            raise _told(event.error)
        if self.first is None:
            self.first = asyncio.get_running_loop().time() - self.began
            self.metrics.first.observe(self.first)
        if isinstance(event, Ended):
            self.open -= 1
        return event

    async def rest(self) -> AsyncIterator[Event]:
        """What comes until every choice is written; gives up what is left when it is not read to the end."""
        try:
            while self.open:
                yield await self.event()
        finally:
            self.give_up()

    async def ended(self) -> list[Ended]:
        """All choices, in order, once they are written."""
        found = [e async for e in self.rest() if isinstance(e, Ended)]
        return sorted(found, key=lambda e: e.choice)

    def watch(self, request: Request) -> None:
        """Gives up when the client of this request leaves."""

        async def left() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.events.put_nowait(None)

        self.left = asyncio.ensure_future(left())

    def unwatch(self) -> None:
        """Leaves that to others."""
        if self.left is not None:
            self.left.cancel()
            self.left = None

    def give_up(self) -> None:
        """Nothing more is written."""
        if self.open:
            self.engine.cancel(self.jobs)
        self.unwatch()


def stopped() -> ApiError:
    """What is told while the server goes down."""
    return ApiError(503, "the server is shutting down.", "shutting_down", headers={"Retry-After": "15"})


def _seed(seed: int, choice: int) -> int:
    # The first choice has the request's own seed, as `demur chat` would.
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:7], "big")


def _told(error: Exception) -> ApiError:
    if isinstance(error, StoppedError):
        return stopped()
    if isinstance(error, DemurError):
        return ApiError(400, str(error))
    log.error("a choice could not be written", exc_info=error)
    return ApiError(500, "the reply could not be written; the log of the server says why.", "engine_error")
