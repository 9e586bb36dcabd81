"""A language model behind any OpenAI-compatible endpoint (`POST BASE/chat/completions`), asked a few things at a time.

A question is put again, with growing pauses, while the endpoint is busy or broken. One that stays without an answer is
given back as such; when the endpoint is lost, one EndpointError says so.
"""

import os
import random
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2

from demur.errors import EndpointError, SettingsError

TRIES = 4
"""Times a question is put before it is given up."""
PAUSE = 0.5
"""Seconds before the second try, doubled before each further one, with up to as much again at random."""
LONGEST = 30.0
"""Most seconds that a Retry-After is waited for."""
PATIENCE = 5
"""Questions given up in a row after which the endpoint counts as lost."""
KEY = "OPENAI_API_KEY"
"""Where a key is looked for after the caller's own place."""

Question = list[dict[str, str]]
"""Messages with role and content."""


class Unanswered(Exception):  # noqa: N818 - the fate of one question
    """A question was given up."""

    def __init__(self, why: str, reached: bool) -> None:
        super().__init__(why)
        self.reached = reached
        """Whether anybody was there."""


class Endpoint:
    """A model at an endpoint; nothing is asked before `answers`."""

    def __init__(
        self,
        who: str,
        url: str,
        model: str,
        key: str | None = None,
        timeout: float = 60.0,
        workers: int = 4,
        pause: float | None = None,
        forms: Sequence[dict[str, Any]] = ({},),
    ) -> None:
        """See `open`.

        Args:
            who: What it is here for, in words ("the judge llm").
            url: Its base.
            model: Its name there.
            key: For the header; None sends none.
            timeout: Seconds to wait for an answer.
            workers: Questions under way at a time.
            pause: As PAUSE.
            forms: What a question asks for beside an answer, the best first; where the endpoint turns one down, the
                next is tried and then kept to.
        """
        self.who, self.url, self.model, self.workers = who, url.rstrip("/"), model, workers
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._pause = timeout, PAUSE if pause is None else pause
        self._forms, self._form = tuple(forms), 0

    def answers(self, questions: Iterable[Question]) -> Iterator[str | Unanswered]:
        """The model's words on each question, in order, or why there are none.

        Raises:
            EndpointError: it cannot be reached, turns us away, or leaves several questions in a row without an answer.
        """
        stop, pool = threading.Event(), ThreadPoolExecutor(self.workers)
        waiting, given, lost = iter(questions), 0, 0
        under_way: deque[Future[str]] = deque()
        try:
            with httpx2.Client(timeout=self._timeout, headers=self._headers) as client:
                while True:
                    # Only a few are asked ahead: all would have to be waited for when something goes wrong.
                    while len(under_way) < 2 * self.workers and (question := next(waiting, None)) is not None:
                        under_way.append(pool.submit(self._ask, client, question, stop))
                    if not under_way:
                        return
                    try:
                        said, lost = under_way.popleft().result(), 0
                    except Unanswered as error:
                        lost += 1
                        if lost >= PATIENCE or not (given or error.reached):
                            raise EndpointError(f"{self.who} at {self.url} does not answer ({error}).") from error
                        said = error
                    yield said
                    given += 1
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _ask(self, client: httpx2.Client, question: Question, stop: threading.Event) -> str:
        """The model's text.

        Raises:
            Unanswered: not after all tries.
            EndpointError: the endpoint turns us away, which no further try would change.
        """
        why, reached, wait, form = "stopped", False, 0.0, self._form
        for attempt in range(TRIES):
            if stop.wait(wait):
                break
            wait = self._pause * 2**attempt * (1 + random.random())
            try:
                body = {"model": self.model, "messages": question} | self._forms[form]
                reply = client.post(f"{self.url}/chat/completions", json=body)
            except httpx2.TimeoutException:
                why = f"no answer in {self._timeout:g} s"
                continue
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if reply.is_success:
                self._form = max(self._form, form)
                return words_of(reply)
            reached, why = True, f"status {reply.status_code}: {' '.join(reply.text.split())[:160]}"
            if reply.status_code in (400, 422) and form + 1 < len(self._forms):
                form, wait = form + 1, 0.0  # it may not know this form; if it is something else, this will not help
            elif reply.status_code == 429 or reply.status_code >= 500:
                wait = max(wait, min(_seconds(reply.headers.get("retry-after")), LONGEST))
            elif reply.status_code in (400, 413, 422):  # this question, perhaps too long; the next may be answered
                break
            else:
                raise EndpointError(f"{self.who} at {self.url} turns us away ({why}).")
        raise Unanswered(why, reached)


def checked(url: str, flag: str) -> str:
    """The address, if it is one.

    Raises:
        SettingsError: it is none.
    """
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{flag} {url} is no address; expected one like http://HOST/v1.")
    return url


def key_in(*names: str) -> str | None:
    """The key in the first of these variables of the environment that is set, else in OPENAI_API_KEY."""
    return next((os.environ[name] for name in (*names, KEY) if os.environ.get(name)), None)


def words_of(reply: httpx2.Response) -> str:
    """The model's words in an endpoint's reply; of a reply in another form, all of it."""
    try:
        message = reply.json()["choices"][0]["message"]
        return str(message.get("content") or message.get("refusal") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return reply.text


def _seconds(stated: str | None) -> float:
    try:
        return max(0.0, float(stated or 0))
    except ValueError:  # a date: our own pause will do
        return 0.0
