"""Which replies the page shows, chosen by a rule and never by hand, failures among them."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from demur.errors import PolicyError
from demur.records import Feature, FeatureSet, Fired, Transcript, evenly
from demur.reports.study import PLAIN, Answer, Case, Study, first
from demur.reports.words import clean, readable
from demur.steering.explain import MARKS, without_marks
from demur.steering.policies import base_of, find_policy, known_features, names

FEATURES = "features.json"
SHOWN = 6
"""Sensors that are named, strongest first."""
LONG = 700
"""Characters of a prompt or reply that are shown before "the rest"."""

NEAR = 4
"""Replies to a prompt that are in sight; those of other policies are folded away."""

Words = dict[str, dict[int, str]]
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Examples of one thing, and of how many they were taken."""

    title: str
    cases: list[Case]
    of: int
    noun: str = "prompts"

    @property
    def shown(self) -> int:
        """How many of them the page shows."""
        return len(self.cases) // (2 if self.noun == "pairs" else 1)


def choose(study: Study) -> list[Group]:
    """At most twelve prompts: look-alike twins, what the best policy alone refuses, and its failures of both sorts."""
    best, others = study.best, study.policies[1:]
    name, seen = clean(best), set[int]()
    judged = [c for c in study.cases if best in c and c[best].judged]
    harmful, benign = ([c for c in judged if first(c).label == label] for label in ("harmful", "benign"))

    def take(title: str, found: list[Case], n: int) -> Group:
        fresh = [c for c in found if id(c) not in seen]
        picked = evenly(fresh, n)
        seen.update(id(c) for c in picked)
        return Group(title, picked, len(fresh))

    pairs, against = _contrast([p for p in study.pairs if _apart(best, *p)], others, lambda p, c: not _apart(p, *c))
    flat = [case for pair in evenly(pairs, 2) for case in pair]
    seen.update(id(c) for c in flat)
    alone, rival = _contrast(
        [c for c in harmful if c[best].refused], others, lambda p, c: p in c and c[p].judged and not c[p].refused
    )
    groups = [
        Group(f"Look-alike twins: {name} tells them apart{against}", flat, len(pairs), "pairs"),
        take(f"Harmful: {name} refuses{rival}", alone, 3),
        take(f"Failures: harmful, not refused by {name}", [c for c in harmful if not c[best].refused], 2),
        take(f"Failures: benign, refused by {name}", [c for c in benign if c[best].refused], 3),
    ]
    return [g for g in groups if g.cases]


def _contrast(found: list[T], others: list[str], fails: Callable[[str, T], bool]) -> tuple[list[T], str]:
    """Those at which another policy fails, and the words for it; all of them where none does.

    Another steered policy if possible: that the plain model answers says little.
    """
    for rivals in ([p for p in others if p != PLAIN], others):
        if hard := [x for x in found if any(fails(p, x) for p in rivals)]:
            return hard, f", {clean(rivals[0]) if len(rivals) == 1 else 'another policy'} does not"
    return found, ""


def _apart(policy: str, harmful: Case, benign: Case) -> bool:
    if policy not in harmful or policy not in benign:
        return False
    h, b = harmful[policy], benign[policy]
    return h.refused and b.judged and not b.refused


def request(t: Transcript) -> str:
    """What was asked: the prompt, or the whole conversation with its roles."""
    return t.prompt if t.prompt is not None else "\n".join(f"{m.role}: {m.content}" for m in t.messages or ())


def about(t: Transcript) -> str:
    """Label, kind and category in a few words."""
    words = [t.label, *(readable(w) for w in (t.kind, t.category, t.family) if w and w != t.label)]
    return ", ".join(dict.fromkeys(words))


def sides(study: Study, case: Case) -> tuple[list[str], list[str]]:
    """The policies whose replies are in sight - the best, the plain model, some that fare otherwise - and the rest."""
    here = [p for p in study.policies if p in case]
    rivals = [p for p in here if p not in (study.best, PLAIN)]
    # Those that fare otherwise than the best first: they are what the example is about.
    rivals.sort(key=lambda p: study.best in case and case[p].refused == case[study.best].refused)
    shown = [p for p in (study.best, PLAIN) if p in here]
    near = {*shown, *rivals[: NEAR - len(shown)]}
    return [p for p in here if p in near], [p for p in here if p not in near]


def hides(t: Transcript) -> bool:
    """Whether a request is folded away: it asks for harm, or is offensive."""
    return t.label == "harmful" or t.kind == "offensive"


def folds(answer: Answer) -> bool:
    """Whether a reply is folded away: it may do harm, since it does not refuse, or a judge says that it does."""
    t, v = answer
    return bool(v.harmful_reply) or (hides(t) and not answer.refused)


def what_fired(t: Transcript, words: dict[int, str]) -> list[str]:
    """The features that took part in an answer: those that acted, then the sensors, strongest first."""
    lines = []
    for role in ("actuator", "sensor"):
        fired = sorted((f for f in t.fired if f.role == role), key=lambda f: (-f.value, f.feature))
        if fired:
            more = f" and {len(fired) - SHOWN} more" if len(fired) > SHOWN else ""
            lines.append(f"{role}s: {', '.join(_named(f, words) for f in fired[:SHOWN])}{more}")
    return lines


def _named(fired: Fired, words: dict[int, str]) -> str:
    where = f" on “{fired.token.strip()}”" if fired.token.strip() else ""
    return _valued(str(fired.feature), words.get(fired.feature, ""), fired.value) + where


def _valued(name: str, meaning: str, value: float) -> str:
    return f"{name}{f' “{meaning}”' if meaning else ''} = {value:.3g}"


def what_the_gate_thought(t: Transcript) -> str:
    """The gate's score and what came of it; empty where the policy has none."""
    if t.gate is None:
        return ""
    parts = [f"gate {t.gate:.2f}", "open" if t.open else "shut"]
    parts += [f"most like {readable(t.hazard)}"] if t.open and t.hazard else []
    parts += ["read off the last turn by itself"] if t.last_turn else []
    parts += [f"opened on the reply, at its token {t.late + 1}"] if t.late is not None else []
    parts += [f"at {t.dose:.2f} of the dose"] if t.open and t.dose != 1 else []
    return ", ".join(parts)


@dataclass(frozen=True)
class Shaded:
    """A word of a prompt, shaded by what the gate thought when it had come to it."""

    text: str
    share: float
    """From 0 to 100: the logistic of half the score, which tells those between -6 and 6 apart."""
    note: str


def word_by_word(t: Transcript, words: dict[int, str]) -> list[Shaded]:
    """What the gate thought as it read the prompt, or its last turn; empty where it was not asked or has read no words."""
    return [
        Shaded(
            without_marks(h.token) if MARKS.search(h.token) else h.token,
            100 / (1 + math.exp(-max(min(h.score, 50), -50) / 2)),
            "; ".join([f"{h.score:+.2f}", *(_active(name, value, words) for name, value in _strongest(h.fired))]),
        )
        for h in t.heard
    ]


def _strongest(fired: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(fired.items(), key=lambda item: -item[1])[:SHOWN]


def _active(name: str, value: float, words: dict[int, str]) -> str:
    number = name.rpartition("/")[2]
    return _valued(name, words.get(int(number), "") if number.isdecimal() else "", value)


def raised_words(study: Study) -> Words:
    """What each feature means, by policy: from the run's `features.json`, else of shipped policies."""
    mine = study.folder / FEATURES
    if mine.is_file():
        return dict.fromkeys(study.policies, _in_words(FeatureSet.load(mine).features))
    found = {}
    for name in study.policies:
        # Of another level or dose it is the same features; of another hash another policy of that name.
        with suppress(PolicyError):  # another policy's name, of the same form
            if base_of(name) in names() and (policy := find_policy(name)).hash == study.hashes[name]:
                found[name] = _in_words(known_features(policy).values())
    return {name: words for name, words in found.items() if words}


def _in_words(features: Iterable[Feature]) -> dict[int, str]:
    # A name says more than words; features found before they had one have words only.
    return {
        f.id: f.name or " ".join(w.strip() for w in f.evidence.raised[:3])
        for f in features
        if f.name or f.evidence.raised
    }
