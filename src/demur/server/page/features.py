"""*Features*: what they fire on and what they write; one moved, and the answer beside the unmoved one."""

from typing import Any

from nicegui import background_tasks, ui

from demur.errors import DemurError
from demur.records import Edit, Feature, FeatureSet, Intervention, Message, Policy
from demur.server.page.desk import Desk
from demur.server.page.frame import visitor
from demur.server.page.moved import written
from demur.server.page.parts import VALUE, Choice, Field, Tag, begin_with, button, remark
from demur.server.page.reasons import evidence

MOST = 200
"""Most features listed at a time."""
ROLES = {"": "all", "sensor": "reads harm", "actuator": "writes refusal"}
NAMES = {"sensor": "reads harm", "actuator": "writes refusal"}


class Features:
    """The view."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.rows = [(s, f) for s in desk.features for f in s.features]
        self.buttons: dict[tuple[str, str, int], Tag] = {}
        if not self.rows:
            remark(
                "No features are known for this policy; `demur find` writes them, `--features FILE` shows them here."
            )
            return
        with Tag("div", classes="split"):
            with Tag("section", aria_label="Features"):
                self.search = Field(
                    "Search in what they fire on and write", "input", type="search", hint="bomb, sorry, 1804"
                )
                self.search.input.on("input", self._list, args=[], throttle=0.2)
                self.role = Choice("Show", ROLES, "", self._list)
                self.count = Tag("p", "", "soft", role="status")
                self.list = Tag("ul", classes="list")
            self.place = Tag("section", classes="evidence", aria_label="The chosen feature", aria_live="polite")
        self._list()
        self._choose(*self.rows[0])

    def _list(self, *_: Any) -> None:
        words = self.search.value.lower().split()
        found = [
            (s, f)
            for s, f in self.rows
            if (not self.role.value or f.role == self.role.value) and all(w in _searched(f) for w in words)
        ]
        self.count.text = f"{len(found)} of {len(self.rows)}" + (
            f"; the first {MOST} here" if len(found) > MOST else ""
        )
        self.list.clear()
        self.buttons.clear()
        with self.list:
            for s, f in found[:MOST]:
                with Tag("li"), Tag("button", classes="item", type="button") as item:
                    Tag("span", NAMES[f.role], "role")
                    Tag("span", f"feature {f.id}")
                    Tag("small", _short(f))
                item.on("click", lambda _, s=s, f=f: self._choose(s, f), args=[])
                self.buttons[s.method, f.role, f.id] = item

    def _choose(self, of: FeatureSet, feature: Feature) -> None:
        for key, item in self.buttons.items():
            item.put(aria_current="true" if key == (of.method, feature.role, feature.id) else None)
        self.place.clear()
        with self.place:
            Tag("h2", f"Feature {feature.id}")
            with Tag("dl", classes="facts"):
                facts = {"role": NAMES[feature.role], "site": of.site, "found by": of.method}
                facts |= {"usual maximum": f"{feature.level:.1f}"} if feature.level else {}
                facts |= {name.replace("_", " "): f"{value:.3f}" for name, value in feature.scores.items()}
                for name, value in facts.items():
                    Tag("dt", name)
                    Tag("dd", value, "number")
            if feature.evidence.contexts:
                Tag("h3", "Fires on")
                evidence(feature, 5)
            for title, words in (
                ("Makes likelier", feature.evidence.raised),
                ("Makes less likely", feature.evidence.lowered),
            ):
                if words:
                    Tag("h3", title)
                    with Tag("ul", classes="words"):
                        for word in words:
                            Tag("li", word)
            Mover(self.desk, of, feature)


class Mover:
    """Sets one feature to a value while the model answers."""

    def __init__(self, desk: Desk, of: FeatureSet, feature: Feature) -> None:
        self.desk, self.of, self.feature = desk, of, feature
        self.usual = feature.level or 10.0
        self.share = 1.0
        with Tag("div", classes="move"):
            Tag("h2", "Move it")
            self.asked = Field("Ask", "input", value="How do I bake bread?", maxlength="2000")
            with Tag("fieldset", classes="level"):
                Tag("legend", "Set to, in shares of its usual maximum")
                self.input = Tag("input", type="range", min="0", max="3", step="0.1", aria_label="Value")
                begin_with(self.input, "1")
                self.input.on("input", self._moved, js_handler=VALUE)
                with Tag("div", classes="stops", aria_hidden="true"):
                    for text in ("0", "1", "2", "3"):
                        Tag("span", text)
                self.about = Tag("p", "", "about", role="status")
            self.go = button("Answer with it", self.answer, "main")
            self.told = remark("")
            with Tag("div", classes="beside"):
                self.texts = [self._column(title) for title in ("Left alone", "Moved")]
        self._say()

    def _column(self, title: str) -> Tag:
        with Tag("section", classes="answer"):
            with Tag("header"):
                Tag("h2", title)
            return Tag("div", "", "text", aria_live="polite", aria_label=title)

    def _moved(self, event: Any) -> None:
        self.share = float(event.args)
        self._say()

    def _say(self) -> None:
        self.about.text = f"{self.share:g} × {self.usual:.1f} = {self.share * self.usual:.1f}"
        self.input.put(aria_valuetext=self.about.text)

    async def answer(self) -> None:
        """Answers both ways."""
        caller = visitor(self.desk).caller
        self.told.classes(remove="bad")
        # Whoever may set any feature may undo any policy.
        if caller is None or not caller.may("operator"):
            self.told.text = "Moving features is for operators: a policy could be undone by it."
            return
        if self.asked.value.strip():
            background_tasks.create(self._answer(), context=ui.context.client)

    async def _answer(self) -> None:
        self.told.text = ""
        self.go.put(disabled=True)
        talk = (Message(role="user", content=self.asked.value.strip()),)
        plain = Policy(name="none")
        try:
            for text in self.texts:
                text.text = ""
                text.classes("writing")
            async for column, said in written(self.desk.serving, talk, [plain, self._policy()]):
                self.texts[column].text = said
        except DemurError as error:
            self.told.classes("bad")
            self.told.text = str(error)
        finally:
            self.go.put(disabled=None)
            for text in self.texts:
                text.classes(remove="writing")

    def _policy(self) -> Policy:
        edit = Edit(feature=self.feature.id, operation="clamp", value=self.share * self.usual)
        return Policy(
            name="moved",
            model=self.of.model,
            model_hash=self.of.model_hash,
            saes={self.of.site: self.of.sae_hash},
            interventions=(Intervention(site=self.of.site, edits=(edit,), positions="reply"),),
        )


def _searched(feature: Feature) -> str:
    e = feature.evidence
    return " ".join([str(feature.id), *e.contexts, *e.raised]).replace("«", "").replace("»", "").lower()


def _short(feature: Feature) -> str:
    if feature.role == "actuator" and feature.evidence.raised:
        return "writes " + ", ".join(w.strip() for w in feature.evidence.raised[:5])
    passage = next(iter(feature.evidence.contexts), "")
    before, _, rest = passage.partition("«")
    return (
        f"…{' '.join(before.split())[-24:]} {' '.join(rest.replace('»', '').split())[:40]}"
        if passage
        else "no evidence kept"
    )
