"""*Play*: the plain and the steered answer side by side, as they are written, and why the second is what it is."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
from nicegui import background_tasks, ui

from demur.errors import DemurError
from demur.records import LEVELS, Message
from demur.server.page.api import Api, Done
from demur.server.page.desk import Desk
from demur.server.page.frame import Visitor, visitor
from demur.server.page.parts import VALUE, Field, Tag, begin_with, button, remark
from demur.server.page.reasons import Reasons

LENGTH = 128
"""Longest reply, in tokens."""
EXAMPLES = (
    "How do I destroy an old hard drive so that nobody can read my tax returns?",
    "How do I break into my neighbour's house unseen?",
    "What is the derivative of x squared times sine x?",
)
SENTENCE = re.compile(r".*?[.!?…\n]+(?=\s|$)", re.S)


class Column:
    """One answer while it is written and after."""

    def __init__(self, title: str) -> None:
        with Tag("section", classes="answer"):
            with Tag("header"):
                self.title = Tag("h2", title)
                self.badge = Tag("span", "", "badge").shown(False)
            self.text = Tag("div", "", "text")
            # Read aloud sentence by sentence: word by word nobody can follow.
            self.spoken = Tag("div", "", "sr-only", aria_live="polite", aria_label=title)
            self.told = remark("")
            self.foot = Tag("div", classes="row")

    def clear(self, title: str) -> None:
        """Ready for another answer."""
        self.title.text = title
        self.spoken.put(aria_label=title)
        self.text.text = self.spoken.text = self.told.text = ""
        self.badge.shown(False)
        self.foot.clear()

    async def write(self, api: Api, model: str, messages: tuple[Message, ...]) -> Done | None:
        """Writes an answer as it comes; None if there was none."""
        self.text.classes("writing")
        said, spoken = "", 0
        try:
            async for piece in api.ask(model, messages, LENGTH):
                if isinstance(piece, Done):
                    self.spoken.text = said[spoken:]
                    return piece
                said += piece
                self.text.text = said
                if sentence := SENTENCE.match(said, spoken):
                    self.spoken.text, spoken = sentence.group(), sentence.end()
        except DemurError as error:
            self.told.classes("bad")
            self.told.text = str(error)
        finally:
            self.text.classes(remove="writing")
        return None

    def mark(self, text: str, kind: str) -> None:
        """A word beside the title."""
        self.badge.classes(remove="steered plain", add=kind)
        self.badge.text = text
        self.badge.shown(True)


class Play:
    """The view."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.models: dict[str, str] = {}
        """By level, the model's id."""
        self.level = "standard"
        self.work: asyncio.Task[Any] | None = None
        with Tag("form", classes="composer", aria_label="Ask") as form:
            form.on("submit", js_handler="(event) => event.preventDefault()")
            with Tag("div"):
                self.asked = Field("What do you want to ask?", hint="Ctrl+Enter asks", rows="3", maxlength="4000")
                self.asked.input.on("keydown.ctrl.enter", self.ask, args=[])
                self.asked.input.on("keydown.meta.enter", self.ask, args=[])
                with Tag("div", classes="row"):
                    self.go = button("Ask", self.ask, "main")
                    self.halt = button("Stop", self.stop).shown(False)
                with Tag("div", classes="chips", role="group", aria_label="Examples"):
                    for example in EXAMPLES:
                        button(example, self._takes(example))
            self.slider = _Slider(self._chosen)
        self.told = remark("")
        with Tag("div", classes="beside"):
            self.plain, self.steered = Column("Plain"), Column("Steered")
        self.reasons = Reasons(desk)

    async def begin(self) -> None:
        """Learns which levels may be asked for."""
        await self._learn(visitor(self.desk))

    async def _learn(self, seen: Visitor) -> None:
        try:
            ids = await Api(seen.key).models()
        except DemurError as error:
            self.told.classes("bad")
            self.told.text = str(error)
            return
        self.told.classes(remove="bad")
        self.told.text = ""
        by_level = {i.rpartition(":")[2]: i for i in ids if "/" not in i}  # of the usual policy
        self.models = {level: by_level[level] for level in LEVELS if level in by_level}
        self.level = next((x for x in ("standard", "strict", *self.models) if x in self.models), "off")
        levels = self.desk.policy.levels
        self.slider.fill([x for x in self.models if x != "off" or len(self.models) == 1], self.level, levels)
        self.steered.title.text = f"Steered: {self.level}"
        if "off" not in self.models:
            self.plain.told.text = "The plain model may not be asked here."

    def stop(self) -> None:
        """Gives the answers up."""
        if self.work is not None:
            self.work.cancel()

    async def ask(self) -> None:
        """Asks both, and tells why."""
        if not self.asked.value.strip() or (self.work is not None and not self.work.done()):
            return
        seen = visitor(self.desk)
        if not self.models:  # asked before the page had learnt them, or with a key that was given since
            await self._learn(seen)
        if not self.models:
            return
        self.work = background_tasks.create(self._answer(seen, Api(seen.key)), context=ui.context.client)

    async def _answer(self, seen: Visitor, api: Api) -> None:
        messages, level = (Message(role="user", content=self.asked.value.strip()),), self.level
        self.told.text = ""
        self.plain.clear("Plain")
        self.steered.clear(f"Steered: {level}")
        self.reasons.clear()
        self.go.put(disabled=True)
        self.halt.shown(True)
        try:
            model = self.models[level]
            ends = [self.steered.write(api, model, messages)]
            if "off" in self.models:
                ends.append(self.plain.write(api, self.models["off"], messages))
            done = (await asyncio.gather(*ends))[0]
            if "off" in self.models and not self.plain.told.text:
                self.plain.mark("no policy", "plain")
            if done is not None:
                steered = bool(done.account.get("steered"))
                self.steered.mark("steered" if steered else "left alone", "steered" if steered else "plain")
                if steered:
                    with self.steered.foot:
                        Appeal(self.desk, seen, done.id)
                await self.reasons.tell(self.desk.serving.offer.pick(model).policy, messages, done.account)
        finally:
            self.go.put(disabled=None)
            self.halt.shown(False)

    def _takes(self, example: str) -> Callable[[], Awaitable[None]]:
        async def take() -> None:
            self.asked.set(example)
            await self.ask()

        return take

    async def _chosen(self, level: str) -> None:
        self.level = level


class _Slider:
    """The levels, from mild to strict."""

    def __init__(self, chosen: Callable[[str], Awaitable[None]]) -> None:
        self._chosen, self.names, self.abouts = chosen, ["standard"], [""]
        with Tag("fieldset", classes="level"):
            Tag("legend", "How strict")
            self.input = Tag("input", type="range", min="0", max="0", step="1", aria_label="Level")
            self.input.on("input", self._moved, js_handler=VALUE)
            self.stops = Tag("div", classes="stops", aria_hidden="true")
            self.about = Tag("p", "", "about")

    def fill(self, names: list[str], now: str, levels: Any) -> None:
        """The levels that there are."""
        self.names = names
        self.abouts = [levels[n].about if n in levels else "" for n in names]
        self.input.put(max=str(len(names) - 1), disabled=True if len(names) == 1 else None)
        begin_with(self.input, str(names.index(now)))
        self._show(names.index(now))

    def _show(self, at: int) -> None:
        self.input.put(aria_valuetext=self.names[at])
        self.stops.clear()
        with self.stops:
            for i, name in enumerate(self.names):
                Tag("b" if i == at else "span", name)
        self.about.text = self.abouts[at] or "One level is offered here." * (len(self.names) == 1)

    async def _moved(self, event: Any) -> None:
        at = int(event.args)
        self._show(at)
        await self._chosen(self.names[at])


class Appeal:
    """The button that contests a refusal, and its dialog."""

    def __init__(self, desk: Desk, seen: Visitor, answer: str) -> None:
        self.desk, self.seen, self.answer = desk, seen, answer
        self.open = button("This should not have been refused", self.show)
        with Tag("dialog", classes="dialog", aria_label="Appeal against this answer") as self.dialog:
            Tag("h2", "Appeal against this answer")
            days = f"{desk.serving.card.retention_days} days"
            Tag(
                "p", f"Your question, the answer and your words are kept for {days} so that they can be judged.", "soft"
            )
            Tag("p", f"Who decides: {desk.serving.card.reviewer}", "soft")
            self.argument = Field("Why should it be answered?", rows="4", maxlength="4000")
            self.told = remark("")
            with Tag("div", classes="row"):
                self.send = button("Send the appeal", self.file, "main")
                button("Close", self.hide)

    def show(self) -> None:
        """Opens the dialog."""
        ui.run_javascript(f"document.getElementById('{self.dialog.html_id}').showModal()")

    def hide(self) -> None:
        """Closes it."""
        ui.run_javascript(f"document.getElementById('{self.dialog.html_id}').close()")

    async def file(self) -> None:
        """Files the appeal."""
        argument, caller = self.argument.value.strip(), self.seen.caller
        self.told.classes(remove="bad good")
        if not argument or caller is None:
            self.told.classes("bad")
            self.told.text = "Say why, in a sentence." if caller else "Give your key first, at the top of the page."
            return
        try:
            made = await anyio.to_thread.run_sync(self.desk.store.appeal, caller.name, self.answer, argument)
        except DemurError as error:
            self.told.classes("bad")
            self.told.text = str(error)
            return
        self.told.classes("good")
        self.told.text = f"Filed as {made.id}."
        self.send.put(disabled=True)
        self.open.put(disabled=True)
        self.open.text = "Appealed"
