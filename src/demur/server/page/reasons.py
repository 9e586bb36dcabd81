"""Why an answer came out as it did: the score, the words that made it, the features behind a word, sentences."""

from typing import Any

import anyio.to_thread

from demur.errors import DemurError
from demur.records import Feature, Message, Policy
from demur.server.page.desk import Desk
from demur.server.page.parts import Tag, remark
from demur.steering.explain import without_marks
from demur.steering.tokens import TokenRead, by_token

LOUDEST = 6
"""Most features shown for a word."""


class Reasons:
    """The part of a view that explains one answer."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.place = Tag("section", classes="why", aria_label="Why")
        self.place.shown(False)

    def clear(self) -> None:
        """Nothing to explain."""
        self.place.clear()
        self.place.shown(False)

    async def tell(self, policy: Policy, messages: tuple[Message, ...], account: dict[str, Any]) -> None:
        """Explains an answer from what it tells of itself, and from what its gate reads."""
        lm, saes = self.desk.serving.lm, self.desk.serving.offer.saes
        words: tuple[TokenRead, ...] = ()
        wrong = ""
        if policy.gate is not None:
            try:
                words = await anyio.to_thread.run_sync(
                    by_token, lm, saes, policy.gate, messages, bool(account.get("last_turn"))
                )
            except DemurError as error:
                wrong = str(error)
        self.place.shown(True)
        with self.place:
            with Tag("div"):
                Tag("h2", "What was read")
                if wrong:
                    remark(wrong, "bad")
                self._meter(account)
                self._words(words)
            with Tag("div"):
                Tag("h2", "In words")
                with Tag("ul"):
                    for line in account.get("why", ()):
                        Tag("li", line.strip(), "sub" if line.startswith(" ") else "")

    def _meter(self, account: dict[str, Any]) -> None:
        score, line = account.get("gate"), account.get("threshold")
        if score is None or line is None:
            return
        low, high = min(score, line) - 1.5, max(score, line) + 1.5

        def at(value: float) -> str:
            return f"{10 + 480 * (value - low) / (high - low):.1f}"

        said = f"The prompt scored {score:.2f}; the gate opens at {line:.2f}."
        with Tag("svg", classes="meter", viewBox="0 0 500 46", role="img", aria_label=said):
            Tag(
                "line",
                x1="10",
                x2="490",
                y1="24",
                y2="24",
                stroke="var(--line)",
                stroke_width="6",
                stroke_linecap="round",
            )
            Tag(
                "line",
                x1=at(line),
                x2="490",
                y1="24",
                y2="24",
                stroke="var(--harm)",
                stroke_opacity=".35",
                stroke_width="6",
            )
            Tag("line", x1=at(line), x2=at(line), y1="14", y2="34", stroke="var(--ink)", stroke_width="1.5")
            tone = "var(--harm)" if score >= line else "var(--calm)"
            Tag("circle", cx=at(score), cy="24", r="7", fill=tone)
            above = abs(score - line) / (high - low) > 0.25
            Tag("text", f"opens at {line:.2f}", x=at(line), y="46", text_anchor="middle")
            Tag("text", f"score {score:.2f}", x=at(score), y="10" if not above else "46", text_anchor="middle")

    def _words(self, words: tuple[TokenRead, ...]) -> None:
        most = max((abs(w.share) for w in words), default=0.0)
        if not most:
            Tag("p", "No feature that this policy reads was active.", "soft")
            return
        with Tag("div", classes="key", aria_hidden="true"):
            for kind, text in (("harm", "towards harm"), ("calm", "away from harm")):
                with Tag("span", classes=kind):
                    Tag("i")
                    Tag("span", text)
        pressed: list[Tag] = []
        line = Tag("p", classes="tokens", aria_label="The prompt, token by token")
        aside = Tag("div", classes="aside", aria_live="polite")

        def press(word: TokenRead, tag: Tag) -> None:
            for other in pressed:
                other.put(aria_pressed="false")
            pressed[:] = [tag]
            tag.put(aria_pressed="true")
            aside.clear()
            with aside:
                self._about(word)

        loudest: tuple[float, TokenRead, Tag] | None = None
        with line:
            for word in words:
                text = word.text if word.of_prompt else "⟨reply⟩"
                if not word.features:
                    Tag("span", text, "token" if word.of_prompt else "token spoken")
                    continue
                said = f"{text.strip()}: {word.share:+.2f}, {len(word.features)} features"
                tag = Tag(
                    "button",
                    text,
                    f"token {'harm' if word.share > 0 else 'calm'}",
                    type="button",
                    style=f"--share: {abs(word.share) / most:.3f}",
                    aria_pressed="false",
                    title=f"{word.share:+.2f}",
                    aria_label=said,
                )
                tag.on("click", lambda _, w=word, t=tag: press(w, t), args=[])
                if loudest is None or word.share > loudest[0]:
                    loudest = word.share, word, tag
        if loudest is not None:
            press(loudest[1], loudest[2])

    def _about(self, word: TokenRead) -> None:
        name = repr(word.text.strip()) if word.of_prompt else "the place where the reply begins"
        Tag("h3", f"{name} adds {word.share:+.2f} to the score")
        known = self.desk.known
        for site, number, share in word.features[:LOUDEST]:
            Tag("p", f"{share:+.2f}  feature {number}", "number")
            evidence(known.get((site, number)), 1)
        if len(word.features) > LOUDEST:
            Tag("p", f"and {len(word.features) - LOUDEST} more.", "soft")


def evidence(feature: Feature | None, most: int) -> None:
    """Passages in which a feature is strong; the word where it is strongest is marked."""
    for passage in feature.evidence.contexts[:most] if feature else ():
        before, _, rest = passage.partition("«")
        word, _, after = rest.partition("»")
        with Tag("blockquote"):
            Tag("span", f"…{without_marks(before)}")
            Tag("mark", word)
            Tag("span", f"{' ' if after[:1].isspace() else ''}{without_marks(after)}…")
