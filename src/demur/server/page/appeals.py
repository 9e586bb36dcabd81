"""*Appeals*: the queue for reviewers; what came of it, in numbers, for everybody."""

import time
from collections.abc import Awaitable, Callable

import anyio.to_thread

from demur.errors import DemurError
from demur.server.feedback.records import Case, Decision, State, Statistics
from demur.server.feedback.statistics import statistics
from demur.server.page.desk import Desk
from demur.server.page.frame import visitor
from demur.server.page.parts import Choice, Field, Tag, button, remark

STATES = {"open": "open", "upheld": "upheld", "rejected": "rejected", "lapsed": "lapsed", "": "all"}
PAGE = 20


class Appeals:
    """The view."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.tallies = Tag("dl", classes="tallies")
        with Tag("div", classes="bar"):
            self.state = Choice("Show", STATES, "open", self.load)
            button("Look again", self.load)
        self.told = remark("")
        self.place = Tag("section", classes="cases", aria_label="Appeals", aria_live="polite")
        self.more = button("More", self._load_more).shown(False)
        self.last: str | None = None

    async def begin(self) -> None:
        """Reads the queue."""
        await self.load()

    async def load(self) -> None:
        """From the oldest on."""
        self.place.clear()
        self.last = None
        await self._load_more()

    async def _load_more(self) -> None:
        seen = visitor(self.desk)
        self.told.text = ""
        self.told.classes(remove="bad")
        state: State | None = self.state.value or None  # type: ignore[assignment]
        try:
            self._count(await anyio.to_thread.run_sync(statistics, self.desk.store))
            if seen.caller is None or not seen.caller.may("reviewer"):
                self.told.text = "The queue is for reviewers: give a reviewer's key at the top of the page."
                return
            cases, more = await anyio.to_thread.run_sync(self.desk.store.cases, state, PAGE, self.last)
        except DemurError as error:
            self.told.classes("bad")
            self.told.text = str(error)
            return
        if not cases and self.last is None:
            self.told.text = f"No appeal is {state}." if state else "There are no appeals."
        with self.place:
            for case in cases:
                _Card(self.desk, case, self._recount)
        self.last = cases[-1].appeal.id if cases else self.last
        self.more.shown(more)

    async def _recount(self) -> None:
        self._count(await anyio.to_thread.run_sync(statistics, self.desk.store))

    def _count(self, found: Statistics) -> None:
        self.tallies.clear()
        with self.tallies:
            for name in ("refused", "appeals", "open", "upheld", "rejected"):
                with Tag("div"):
                    Tag("dt", {"refused": "answers steered", "open": "still open"}.get(name, name))
                    Tag("dd", str(getattr(found.every, name)))


class _Card:
    """One appeal."""

    def __init__(self, desk: Desk, case: Case, decided: Callable[[], Awaitable[None]]) -> None:
        self.desk, self.case, self.decided = desk, case, decided
        self.place = Tag("article", classes="case", aria_label=f"Appeal {case.appeal.id}")
        self._show()

    def _show(self) -> None:
        appeal, answer = self.case.appeal, self.case.answer
        self.place.clear()
        with self.place:
            with Tag("div", classes="meta"):
                Tag("span", appeal.state, f"badge {appeal.state}")
                Tag("span", time.strftime("%d %b %Y, %H:%M", time.localtime(appeal.created)))
                if answer.kind:
                    Tag("span", answer.kind.replace("_", " "))
                if answer.gate is not None:
                    Tag("span", f"gate {answer.gate:.2f}", "number")
                Tag("span", answer.model)
            if answer.messages is None:
                Tag("p", "Its text is deleted.", "soft")
                return
            for message in answer.messages:
                Tag("blockquote", message.content) if message.role == "user" else Tag("p", message.content, "reply")
            Tag("p", answer.reply or "", "reply")
            Tag("p", appeal.argument or "", "argument")
            if appeal.state == "open":
                self._ask()
            elif appeal.decided is not None:
                by = f"{appeal.state} by {appeal.reviewer}"
                Tag("p", f"{by}: {appeal.note}" if appeal.note else f"{by}.", "soft")

    def _ask(self) -> None:
        self.note = Field("A note for whoever appealed", "input", maxlength="4000")
        self.told = remark("")
        with Tag("div", classes="row"):
            button("Uphold: it should be answered", self._decides("upheld"), "main")
            button("Reject: the refusal stands", self._decides("rejected"))

    def _decides(self, decision: Decision) -> Callable[[], Awaitable[None]]:
        async def decide() -> None:
            caller = visitor(self.desk).caller
            if caller is None or not caller.may("reviewer"):
                self.told.text = "Deciding is for reviewers."
                return
            try:
                self.case = await anyio.to_thread.run_sync(
                    self.desk.store.decide, self.case.appeal.id, decision, self.note.value, caller.name
                )
            except DemurError as error:
                self.told.classes("bad")
                self.told.text = str(error)
                return
            self._show()
            await self.decided()

        return decide
