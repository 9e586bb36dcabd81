"""The engine: one thread that writes all replies, row by row in one batch, as requests come and clients leave."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from demur.models.generation import end_tokens
from demur.models.load import LanguageModel
from demur.records import Policy
from demur.sae.sae import SAE
from demur.server.batch import Batch, BrokenBatchError, Coded
from demur.server.sampling import Drawing, Sampling, TokenScore, scored
from demur.server.writing import Writing

log = logging.getLogger("demur.server")
PREFILL = 2048
"""Most tokens, padding included, of the prompts that are read in one pass; rows under way wait for it."""
SCORED = 512
"""The same of prompts whose own tokens are scored: each has a row of logits."""

Finish = Literal["stop", "length", "content_filter"]


class BusyError(Exception):
    """There is no room left to wait in."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"all rows and all places to wait are taken; come back in {seconds} s.")
        self.seconds = seconds


class StoppedError(Exception):
    """The engine takes nothing more."""


@dataclass(frozen=True)
class Piece:
    """Text that has come, of a choice that is streamed."""

    choice: int
    text: str
    scores: tuple[TokenScore, ...]
    """Of the tokens that came since the last piece."""


@dataclass(frozen=True)
class Ended:
    """A choice that is written."""

    choice: int
    text: str
    """All of it."""
    rest: str
    """What of it was not streamed."""
    tokens: int
    finish: Finish
    steering: dict
    """As `Reply.steering`."""
    scores: tuple[TokenScore, ...]
    """Of every token; where it was streamed, of those since the last piece."""
    prompt_scores: tuple[TokenScore, ...]
    """Of the prompt's tokens, where they were asked for."""


@dataclass(frozen=True)
class Failed:
    """A choice that could not be written."""

    choice: int
    error: Exception


Event: TypeAlias = Piece | Ended | Failed


@dataclass(eq=False)
class Job:
    """One choice to be written."""

    prompt: Coded
    policy: Policy
    how: Sampling
    deliver: Callable[[Event], None]
    """Called from the engine's thread; quick."""
    choice: int = 0
    stream: bool = False
    strip: bool = True
    """Whether white space around the reply is left out."""
    echo: bool = False
    """Whether the prompt's own tokens are scored."""
    stop_late: bool = False
    """End the reply when the gate on it opens, before what is held back."""
    cancelled: bool = False


@dataclass(eq=False)
class Row:
    """A job that is being written."""

    job: Job
    drawing: Drawing
    writing: Writing
    hold: int
    """Tokens that are held back until the gate on the reply has read on."""
    scores: list[TokenScore] = field(default_factory=list)
    """Of the tokens that were not told of yet."""
    told: int = 0
    since: float = field(default_factory=time.monotonic)
    prompt_scores: tuple[TokenScore, ...] = ()

    def tell(self, tokens: int) -> tuple[TokenScore, ...]:
        """The scores of the first so many tokens, less those that were told before."""
        told, self.scores = self.scores[: max(0, tokens - self.told)], self.scores[max(0, tokens - self.told) :]
        self.told += len(told)
        return tuple(told)


class Engine:
    """Starts with `start`, ends with `stop`; `submit` and `cancel` from any thread."""

    def __init__(
        self, lm: LanguageModel, saes: Mapping[str, SAE], rows: int = 16, queue: int = 64, threads: int | None = None
    ) -> None:
        """`threads` is how many of torch's own its thread may use, if not as many as any other."""
        self.lm, self.saes, self.room, self.queue, self.threads = lm, saes, rows, queue, threads
        self.ends = set(end_tokens(lm))
        self.batch = Batch(lm, saes, rows)
        self.rows: list[Row] = []
        self.waiting: deque[Job] = deque()
        self.counts = {"prompt_tokens": 0, "reply_tokens": 0, "passes": 0, "cancelled": 0, "failed": 0}
        self._bell = threading.Condition()
        self._open = 0  # choices taken in and not done with
        self._coming: list[Job] = []
        self._stopping = False
        self._pace = 1.0  # seconds that a choice takes, smoothed
        self._thread = threading.Thread(target=self._run, name="demur-engine", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        """Ends the thread; what is not written by then has failed."""
        with self._bell:
            self._stopping = True
            self._bell.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues choices, all of them or none.

        Raises:
            BusyError: there is no room.
            StoppedError: the engine does not work any more.
        """
        with self._bell:
            if not self.is_alive:
                raise StoppedError
            if self._open + len(jobs) > self.room + self.queue:
                raise BusyError(max(1, math.ceil(self._pace * (len(self.waiting) + len(jobs)) / self.room)))
            self.waiting.extend(jobs)
            self._open += len(jobs)
            self._bell.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Gives choices up; nothing more is delivered of them."""
        with self._bell:
            for job in jobs:
                job.cancelled = True
            before = len(self.waiting)
            self.waiting = deque(j for j in self.waiting if not j.cancelled)
            self.counts["cancelled"] += before - len(self.waiting)
            self._open -= before - len(self.waiting)

    def _run(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                while True:
                    try:
                        if not self._turn():
                            break
                    except Exception as error:
                        log.exception("a pass failed; its rows are given up")
                        self._start_afresh(error)
        except Exception:
            log.exception("a new batch could not be begun; the engine stops")
        finally:
            # Whatever ended it, nobody shall wait for an answer that does not come.
            with self._bell:
                self._stopping = True
                left = list(dict.fromkeys([*(r.job for r in self.rows), *self._coming, *self.waiting]))
            for job in left:
                if not job.cancelled:
                    with suppress(Exception):  # one who is gone shall not keep the others waiting
                        job.deliver(Failed(job.choice, StoppedError()))

    def _turn(self) -> bool:
        with self._bell:
            while not (self.waiting or self.rows or self._stopping):
                self._bell.wait()
            if self._stopping:
                return False
            come = self._next()
            self._coming = list(come)  # who is done leaves this one, while the other is gone through
        for i in reversed(range(len(self.rows))):
            if self.rows[i].job.cancelled:
                self.counts["cancelled"] += 1
                self._leave(i)
        if come:
            self._join(come)
            self._coming = []
        if self.rows:
            self._step()
        return True

    def _start_afresh(self, error: Exception) -> None:
        lost = dict.fromkeys([*(r.job for r in self.rows), *self._coming])
        self.batch = Batch(self.lm, self.saes, self.room)
        self.rows, self._coming = [], []
        for job in lost:
            self._fail(job, error)
        with self._bell:
            self._open = len(self.waiting)

    def _next(self) -> list[Job]:
        # Those who waited longest, as many as there are rows for and as are read in one pass.
        found: list[Job] = []
        longest = 0
        while self.waiting and len(self.rows) + len(found) < self.room:
            job = self.waiting[0]
            longest = max(longest, len(job.prompt[0]))
            most = SCORED if job.echo else PREFILL
            if found and ((len(found) + 1) * longest > most or job.echo != found[0].echo):
                break
            found.append(self.waiting.popleft())
        return found

    def _join(self, jobs: list[Job]) -> None:
        try:
            logits = self.batch.join([j.prompt for j in jobs], [j.policy for j in jobs], jobs[0].echo)
        except BrokenBatchError:
            raise
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for job in jobs:  # only the one that it is about shall fail
                self._join([job])
            return
        self.counts["passes"] += 1
        self.counts["prompt_tokens"] += sum(len(j.prompt[0]) for j in jobs)
        first = len(self.rows)
        for job, own in zip(jobs, logits, strict=True):
            late = job.policy.gate.continuation if job.policy.gate else None
            row = Row(
                job,
                Drawing(job.how, job.prompt[0], self.lm.device),
                Writing(self.lm.tokenizer, job.how.stop, job.strip),
                math.ceil(late.tau) if late and job.stop_late else 0,
            )
            if job.echo:
                row.prompt_scores = _of_prompt(own[-len(job.prompt[0]) :], job.prompt[0], job.how.logprobs or 0)
            self.rows.append(row)
        self._write(range(first, len(self.rows)), logits[:, -1])

    def _step(self) -> None:
        logits = self.batch.step([r.writing.tokens[-1] for r in self.rows])
        self.counts["passes"] += 1
        self._write(range(len(self.rows)), logits)

    def _write(self, places: range, logits: Tensor) -> None:
        # One token more for each of these rows; those that are done leave, the last first.
        likeliest = logits.float().argmax(-1).tolist()
        for i in reversed(places):
            row, own = self.rows[i], logits[i - places.start]
            ended = self._began(i, row) if not row.writing.tokens else self._stopped_late(i, row)
            if ended is None:
                plain = row.job.how.is_plain
                ended = self._take(i, row, likeliest[i - places.start] if plain else row.drawing(own), own)
            if ended is not None:
                self._leave(i)
                if not row.job.cancelled:
                    row.job.deliver(ended)

    def _began(self, i: int, row: Row) -> Ended | None:
        # What is known once the prompt is read: that the reply is a fixed text, or that none was asked for.
        job, text = row.job, row.job.policy.canned
        if text and (seen := self.batch.report(i, 0))["open"]:
            length = len(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"])
            seen |= {"edited": 0, "fired": tuple(f for f in seen["fired"] if f.role == "sensor")}
            return Ended(job.choice, text, text, length, "stop", seen, (), ())
        return self._ended(i, row, "length") if job.how.max_new_tokens == 0 else None

    def _stopped_late(self, i: int, row: Row) -> Ended | None:
        # The gate has just read the last token; what is held back ends with it.
        if not row.hold or not self.batch.is_late(i):
            return None
        return self._ended(i, row, "content_filter", max(0, len(row.writing.tokens) - row.hold))

    def _take(self, i: int, row: Row, token: int, logits: Tensor) -> Ended | None:
        job, how = row.job, row.job.how
        self.counts["reply_tokens"] += 1
        if how.logprobs is not None:
            row.scores += scored(logits[None], [token], how.logprobs)
        stops = row.writing.take(token, job.stream and not row.hold)
        if stops or (token in self.ends and not how.ignore_eos):
            return self._ended(i, row, "stop")
        if len(row.writing.tokens) >= how.max_new_tokens:
            return self._ended(i, row, "length")
        if job.stream and not job.cancelled:
            safe = max(0, len(row.writing.tokens) - row.hold)
            if text := row.writing.ready(safe if row.hold else None):
                job.deliver(Piece(job.choice, text, row.tell(safe)))
        return None

    def _ended(self, i: int, row: Row, finish: Finish, tokens: int | None = None) -> Ended:
        writing = row.writing
        text = writing.whole(tokens)
        # The last token of a reply was not read yet; of one that is cut, every token was.
        seen = self.batch.report(i, len(writing.tokens) + (tokens is not None))
        count = len(writing.tokens) if tokens is None else tokens
        return Ended(row.job.choice, text, writing.rest(text), count, finish, seen, row.tell(count), row.prompt_scores)

    def _leave(self, i: int) -> None:
        self._pace += (time.monotonic() - self.rows[i].since - self._pace) / 16
        self.batch.leave(i)
        job, self.rows[i] = self.rows[i].job, self.rows[-1]
        self.rows.pop()
        self._done(job)

    def _done(self, job: Job) -> None:
        if job in self._coming:
            self._coming.remove(job)  # of those that came with it some may not have joined yet
        with self._bell:
            self._open -= 1

    def _fail(self, job: Job, error: Exception) -> None:
        self.counts["failed"] += 1
        self._done(job)
        if not job.cancelled:
            job.deliver(Failed(job.choice, error))


def _of_prompt(logits: Tensor, ids: list[int], top: int) -> tuple[TokenScore, ...]:
    return (TokenScore(token=ids[0], logprob=None), *scored(logits[:-1], ids[1:], top))
