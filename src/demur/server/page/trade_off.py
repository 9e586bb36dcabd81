"""*Trade-off*: the report's figure from a run's files; a point opens the answers behind it."""

import anyio.to_thread

from demur.errors import DemurError
from demur.records import Rate
from demur.server.page.desk import Desk
from demur.server.page.parts import PRESSED, Choice, Field, Tag, button, remark
from demur.server.page.runs import Answer, Point, Run, find_runs

SIDE, LEFT, TOP = 400, 46, 14
"""Of the drawing: the square, and the room for what is written beside it."""
LETTER = 6.8
"""Width of a letter of a policy's name there."""
PAGE = 10
LABELS = {"": "all", "harmful": "harmful", "benign": "benign"}
OUTCOMES = {o: o or "all" for o in ("", "refused", "partial", "deflected", "complied", "degenerate", "not judged")}


class TradeOff:
    """The view."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.runs: dict[str, Run] = {}
        self.run: Run | None = None
        self.told = remark("")
        self.bar = Tag("div", classes="bar")
        self.place = Tag("div")

    async def begin(self) -> None:
        """Finds the runs and shows the newest."""
        try:
            found = await anyio.to_thread.run_sync(find_runs, self.desk.runs)
        except DemurError as error:
            self._complain(error)
            return
        if not found:
            self.told.text = (
                "No finished run is shown here; start the server with --runs and a folder of `demur evaluate`."
            )
            return
        self.runs = {r.name: r for r in found}
        with self.bar:
            self.which = Choice("Run", {n: n for n in self.runs}, found[0].name, self.load)
        await self.load()

    async def load(self) -> None:
        """Shows the chosen run."""
        self.run = self.runs[self.which.value]
        self.place.clear()
        self.told.text = ""
        try:
            points = await anyio.to_thread.run_sync(lambda run: run.points, self.run)
        except DemurError as error:
            self._complain(error)
            return
        if not points:
            self.told.text = "This run has no policy that was asked harmful and benign prompts."
            return
        with self.place:
            _Figure(self.run, points)

    def _complain(self, error: DemurError) -> None:
        self.told.classes("bad")
        self.told.text = str(error)


class _Figure:
    """The drawing, the table of the same figures, and the answers of the chosen policy."""

    def __init__(self, run: Run, points: list[Point]) -> None:
        self.run, self.points = run, points
        steered = [p.policy for p in points if p.policy != "none"]
        self.colours = {p.policy: "var(--plain)" for p in points}
        self.colours |= {name: f"var(--p{i % 7})" for i, name in enumerate(steered)}
        self.marks: dict[str, list[Tag]] = {p.policy: [] for p in points}
        self.named: list[tuple[float, float, float, float]] = []
        """Where names stand: left, right, top, bottom."""
        with Tag("div", classes="figure"):
            self._draw()
            self._table()
        self.answers = Tag("section", classes="cases", aria_label="Answers", aria_live="polite")

    def _draw(self) -> None:
        width, height = LEFT + SIDE + 70, TOP + SIDE + 46
        with Tag("svg", classes="plot", viewBox=f"0 0 {width} {height}", role="group", aria_label="The trade-off"):
            for i in range(5):
                share = i / 4
                Tag("line", classes="grid", x1=_x(0), x2=_x(1), y1=_y(share), y2=_y(share))
                Tag("line", classes="grid", x1=_x(share), x2=_x(share), y1=_y(0), y2=_y(1))
                Tag("text", f"{100 * share:.0f}", x=_x(share), y=_y(0, 18), text_anchor="middle")
                Tag("text", f"{100 * share:.0f}", x=_x(0, -8), y=_y(share, 4), text_anchor="end")
            Tag("line", classes="even", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1))
            Tag("text", "benign requests refused, %", x=_x(0.5), y=_y(0, 40), text_anchor="middle")
            Tag("text", "harmful requests refused, %", x="0", y="0", text_anchor="middle",
                transform=f"translate(12 {_y(0.5)}) rotate(-90)")  # fmt: skip
            for point in self.points:
                self._point(point)

    def _point(self, point: Point) -> None:
        harmful, benign, colour = point.harmful, point.benign, self.colours[point.policy]
        said = (
            f"{point.policy}: harmful refused {_percent(harmful)}, benign refused {_percent(benign)}; open its answers"
        )
        with Tag("g", classes="point", tabindex="0", role="button", aria_label=said, aria_pressed="false") as mark:
            x, y = benign.rate, harmful.rate
            low, high = benign.low, benign.high
            Tag("line", x1=_x(low), x2=_x(high), y1=_y(y), y2=_y(y), stroke=colour, stroke_width="1.5", opacity=".5")
            low, high = harmful.low, harmful.high
            Tag("line", x1=_x(x), x2=_x(x), y1=_y(low), y2=_y(high), stroke=colour, stroke_width="1.5", opacity=".5")
            Tag("circle", cx=_x(x), cy=_y(y), r="16", fill="transparent")
            Tag(
                "circle",
                classes="dot",
                cx=_x(x),
                cy=_y(y),
                r="6.5",
                fill=colour,
                stroke="var(--page)",
                stroke_width="1.5",
            )
            if place := self._room(point):
                across, down, anchor = place
                Tag("text", point.policy, "name", x=_x(x, across), y=_y(y, down),
                    style=f"fill: {colour}", text_anchor=anchor)  # fmt: skip
            Tag("title", said)
        mark.on("click", lambda _, p=point.policy: self.open(p), args=[])
        mark.on("keydown", lambda _, p=point.policy: self.open(p), js_handler=PRESSED)
        self.marks[point.policy].append(mark)

    def _room(self, point: Point) -> tuple[float, float, str] | None:
        # Where a point's name meets no other and no dot. Where there is no such place, title and table have it.
        x, y = float(_x(point.benign.rate)), float(_y(point.harmful.rate))
        dots = [(float(_x(p.benign.rate)), float(_y(p.harmful.rate))) for p in self.points]
        wide, taken = LETTER * len(point.policy), [*self.named, *((a - 6, a + 6, b - 6, b + 6) for a, b in dots)]
        for across, down, anchor in ((12, -9, "start"), (12, 18, "start"), (-12, -9, "end"), (-12, 18, "end")):
            left = x + across - (wide if anchor == "end" else 0)
            right, top, bottom = left + wide, y + down - 9, y + down + 2
            clear = all(right <= l or r <= left or bottom <= t or b <= top for l, r, t, b in taken)  # noqa: E741
            if clear and left > 0 and right < LEFT + SIDE + 70:
                self.named.append((left, right, top, bottom))
                return across, down, anchor
        return None

    def _table(self) -> None:
        with Tag("div", classes="scroll"), Tag("table", classes="plainly"):
            Tag("caption", "The same in figures, with 95 % intervals. Choose a policy to read its answers.")
            with Tag("thead"), Tag("tr"):
                Tag("th", "policy", scope="col")
                Tag("th", "harmful refused", "figure-cell", scope="col")
                Tag("th", "benign refused", "figure-cell", scope="col")
            with Tag("tbody"):
                for point in self.points:
                    with Tag("tr"):
                        with Tag("th", scope="row"):
                            Tag("span", "", "swatch", style=f"background: {self.colours[point.policy]}")
                            chosen = button(
                                point.policy, lambda p=point.policy: self.open(p), "quiet", aria_pressed="false"
                            )
                            self.marks[point.policy].append(chosen)
                        for rate in (point.harmful, point.benign):
                            with Tag("td", classes="figure-cell"):
                                Tag("span", f"{100 * rate.rate:.1f} %")
                                Tag("small", f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]")

    async def open(self, policy: str) -> None:
        """Shows the answers of a policy."""
        for name, marks in self.marks.items():
            for mark in marks:
                mark.put(aria_pressed="true" if name == policy else "false")
        self.answers.clear()
        try:
            every = await anyio.to_thread.run_sync(lambda run: run.answers, self.run)
        except DemurError as error:
            with self.answers:
                remark(str(error), "bad")
            return
        with self.answers:
            _Answers(policy, [a for a in every if a.transcript.policy == policy])


class _Answers:
    """The answers of one policy, to look through."""

    def __init__(self, policy: str, answers: list[Answer]) -> None:
        self.every, self.shown = answers, 0
        Tag("h2", f"Answers of {policy}")
        with Tag("div", classes="bar"):
            self.label = Choice("Requests", LABELS, "", self._start)
            self.outcome = Choice("Outcome", OUTCOMES, "", self._start)
            self.search = Field("Search", "input", type="search")
            self.search.input.on("input", self._start, args=[], throttle=0.3)
        self.count = Tag("p", "", "soft", role="status")
        self.place = Tag("div")
        self.more = button("More", self._more)
        self._start()

    def _start(self, *_: object) -> None:
        words = self.search.value.lower().split()
        self.found = [
            a
            for a in self.every
            if (not self.label.value or a.transcript.label == self.label.value)
            and (not self.outcome.value or a.outcome == self.outcome.value)
            and all(w in _text(a).lower() for w in words)
        ]
        self.shown = 0
        self.count.text = f"{len(self.found)} of {len(self.every)}"
        self.place.clear()
        self._more()

    def _more(self) -> None:
        with self.place:
            for answer in self.found[self.shown : self.shown + PAGE]:
                t = answer.transcript
                with Tag("article", classes="case"):
                    with Tag("div", classes="meta"):
                        tone = {"refused": "steered", "complied": "open"}.get(answer.outcome, "lapsed")
                        Tag("span", answer.outcome, f"badge {tone}", title=answer.why)
                        Tag("span", t.label)
                        Tag("span", t.set)
                        if t.gate is not None:
                            Tag("span", f"gate {t.gate:.2f}, {'open' if t.open else 'shut'}", "number")
                    Tag("blockquote", t.conversation[-1].content)
                    Tag("p", t.reply, "reply")
        self.shown += PAGE
        self.more.shown(self.shown < len(self.found))


def _text(answer: Answer) -> str:
    return f"{answer.transcript.conversation[-1].content} {answer.transcript.reply}"


def _x(share: float, more: float = 0) -> str:
    return f"{LEFT + SIDE * share + more:.1f}"


def _y(share: float, more: float = 0) -> str:
    return f"{TOP + SIDE * (1 - share) + more:.1f}"


def _percent(rate: Rate) -> str:
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
