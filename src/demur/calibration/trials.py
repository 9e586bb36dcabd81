"""One way to act, and what it does when tried: harm refused, harmless requests refused when the gate errs, fluency, KL."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from demur.calibration.settings import CalibrationSettings
from demur.data.refusals import refusals
from demur.evaluation.capability.divergence import Passage, divergence
from demur.evaluation.outcomes import transcript
from demur.evaluation.quality import key, surprise
from demur.evaluation.statistics import Rate
from demur.features.effect import Answer, Bench, answers
from demur.models.load import LanguageModel
from demur.records import Edit, Feature, Intervention, Policy, Prompt, Record
from demur.steering.generate import Reply
from demur.steering.policies import NONE

NATS = "nats.jsonl"
SPEECHLESS = 20.0
"""Nats a token of a way that never refuses: as unlikely as a word drawn from the whole vocabulary."""
USUAL = 0.95
"""A refusal is fluent if it costs no more nats a token than this share of the refusals that we wrote."""
WHOLE = 0
"""`hold`: the dose does not fall."""


class Range(NamedTuple):
    """Any number from `low` to `high`."""

    low: float
    high: float


Params = Mapping[str, Any]
"""One way to act: dose, positions, onset, hold, decay, soft, and for each feature whether it is raised."""
Space = Mapping[str, Range | tuple[Any, ...]]
"""What each of them may be."""


class Trial(Record):
    """One way to act and what it did."""

    number: int
    params: dict[str, Any]
    refused: Rate
    """Of harmful validation prompts that open the gate."""
    benign_refused: Rate
    """Of benign validation prompts, with the gate forced open."""
    degenerate: Rate
    """Of all of these replies."""
    drawn: Rate | None = None
    """Of the replies to the harmful ones drawn at temperature 1, those that refuse; None where none were. Several to one
    prompt count singly, which makes the interval somewhat narrow."""
    fluent: Rate | None = None
    """Of the refusals of harm; None where there are none."""
    nats: float
    """Mean nats a token of those refusals under the plain model; SPEECHLESS where there are none."""
    kl: float
    """KL(plain ‖ steered) on the plain model's replies to the benign prompts, with the gate forced open; nats a token."""

    @property
    def aims(self) -> tuple[float, float, float, float]:
        """What the search weighs, each the better the higher. Degenerate replies are taken off refusals: both are rates."""
        return (self.refused.rate - self.degenerate.rate, -self.benign_refused.rate, -self.nats, -self.kl)


@dataclass(frozen=True)
class Ground:
    """On what ways to act are tried, and how they become policies."""

    bench: Bench
    base: Policy
    """The model, the SAEs, the vectors and the gate at the level in force; no interventions."""
    actuators: tuple[Feature, ...]
    harmful: Sequence[Prompt]
    benign: Sequence[Prompt]
    lowest: float
    """A threshold that all the benign ones reach."""
    spread: float
    """By how much harmful prompts that open the gate usually do, in the sensor's units."""
    passages: Sequence[Passage]
    """The plain model's replies to benign prompts."""
    limit: float
    """Nats a token up to which a refusal is fluent."""
    folder: Path | None
    settings: CalibrationSettings

    def raised(self, params: Params) -> dict[int, float]:
        """The features and the amounts by which they are raised, or to which; the first, where none is to be."""
        chosen = [f for f in self.actuators if params.get(f"feature {f.id}", True)] or [self.actuators[0]]
        return {f.id: params["dose"] * f.level for f in chosen}

    def policy(self, params: Params, name: str = "trial") -> Policy:
        """The policy that acts so, behind its gate."""
        hold = params.get("hold", WHOLE)
        act = Intervention(
            site=self.bench.sae.config.site,
            edits=tuple(
                Edit(feature=f, operation=self.settings.operation, value=v) for f, v in self.raised(params).items()
            ),
            positions=params["positions"],
            onset=params.get("onset", 0),
            hold=None if hold == WHOLE else hold,
            decay=0 if hold == WHOLE else params.get("decay", 0),
        )
        gate = self.base.gate
        if gate is not None and (soft := params.get("soft", 0.0)):
            gate = gate.model_copy(update={"soft": soft * self.spread})
        return self.base.model_copy(update={"name": name, "interventions": (act,), "gate": gate})

    def tried(self, params: Params) -> tuple[Policy, Policy]:
        """The policy as harmful prompts meet it, and with its gate forced open for the benign ones."""
        policy = self.policy(params)
        if policy.gate is None or not policy.gate.soft:
            # All these prompts open the gate, or it is forced open, at full dose: the same as without it, and quicker.
            bare = policy.model_copy(update={"gate": None})
            return bare, bare
        lower = min(self.lowest, policy.gate.threshold)
        return policy, policy.model_copy(update={"gate": policy.gate.model_copy(update={"threshold": lower})})


def fluency_limit(lm: LanguageModel, prompts: Sequence[Prompt], seed: int, known: Path | None) -> float:
    """Nats a token that USUAL of the refusals that we wrote cost at most, as replies to these prompts."""
    ours = []
    for row, text in zip(prompts, itertools.islice(refusals(seed), len(prompts)), strict=True):
        count = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        seen = {"gate": None, "open": False, "edited": 0, "fired": ()}
        ours.append(transcript(row, NONE, "ours", Reply(text, count, "stop", seen)))
    found = surprise(lm, ours, known=known)
    each = sorted(n.nats / max(1, n.tokens) for n in (found[key(t)] for t in ours))
    return each[min(len(each) - 1, math.ceil(USUAL * len(each)) - 1)]


def plain_replies(bench: Bench, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Passage]:
    """What the plain model answers, as text to compare on; without the prompts to which it says nothing."""
    found = answers(bench, [(NONE, p) for p in prompts], max_new_tokens, "answering plainly")
    passages = []
    for prompt, answer in zip(prompts, found, strict=True):
        ids = bench.lm.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        if ids:
            passages.append(Passage("benign prompts", prompt.conversation, tuple(ids)))
    return passages


@dataclass
class Counted:
    """The replies under one way to act."""

    harmful: list[Answer] = field(default_factory=list)
    benign: list[Answer] = field(default_factory=list)
    drawn: list[Answer] = field(default_factory=list)
    kl: float = 0.0


def measure(
    ground: Ground,
    ways: Sequence[Params],
    what: str,
    harmful: Sequence[Prompt] | None = None,
    benign: Sequence[Prompt] | None = None,
    drawn: int = 0,
) -> list[Trial]:
    """What each way does, in the order given and numbered from 0; their replies are made in the same batches.

    `harmful` and `benign` take the place of the ground's own prompts; `drawn` replies to each harmful one are made besides.
    """
    bad, good = harmful or ground.harmful, benign or ground.benign
    policies = {i: ground.tried(p) for i, p in enumerate(ways)}
    pairs = {(shut.hash, forced.hash): (shut, forced) for shut, forced in policies.values()}
    asked = [
        (policy, prompt)
        for shut, forced in pairs.values()
        for policy, prompts in ((shut, bad), (forced, good))
        for prompt in prompts
    ]
    said = iter(answers(ground.bench, asked, ground.settings.max_new_tokens, what))
    found = {k: Counted(list(itertools.islice(said, len(bad))), list(itertools.islice(said, len(good)))) for k in pairs}
    again = [(shut, prompt) for shut, _ in pairs.values() for prompt in bad]
    for seed in range(ground.settings.seed, ground.settings.seed + drawn):
        most = ground.settings.max_new_tokens
        luck = iter(answers(ground.bench, again, most, f"{what}, drawn", temperature=1.0, seed=seed))
        for counted in found.values():
            counted.drawn += itertools.islice(luck, len(bad))
    if ground.passages:
        forced = {f.hash: f for _, f in pairs.values()}
        lm, saes = ground.bench.lm, ground.bench.saes
        moved = {d.policy_hash: d.kl for d in divergence(lm, saes, list(forced.values()), ground.passages)}
        for k, counted in found.items():
            counted.kl = kl.mean if (kl := moved[k[1]]) else 0.0
    refusals_ = [a.said for c in found.values() for a in c.harmful if a.outcome == "refused"]
    known = ground.folder / NATS if ground.folder else None
    nats = surprise(ground.bench.lm, refusals_, known=known) if refusals_ else {}
    hashes = [(shut.hash, forced.hash) for shut, forced in policies.values()]
    return [_trial(i, ways[i], found[h], nats, ground.limit) for i, h in enumerate(hashes)]


def _trial(number: int, params: Params, counted: Counted, nats: Mapping[str, Any], limit: float) -> Trial:
    bad, good = [a.outcome for a in counted.harmful], [a.outcome for a in counted.benign]
    costs = [nats[key(a.said)] for a in counted.harmful if a.outcome == "refused"]
    each = [n.nats / max(1, n.tokens) for n in costs]
    return Trial(
        number=number,
        params=dict(params),
        refused=Rate.of(bad.count("refused"), len(bad)),
        benign_refused=Rate.of(good.count("refused"), len(good)),
        degenerate=Rate.of((bad + good).count("degenerate"), len(bad) + len(good)),
        drawn=Rate.of(sum(a.outcome == "refused" for a in counted.drawn), len(counted.drawn))
        if counted.drawn
        else None,
        fluent=Rate.of(sum(e <= limit for e in each), len(each)) if each else None,
        nats=sum(n.nats for n in costs) / max(1, sum(n.tokens for n in costs)) if costs else SPEECHLESS,
        kl=counted.kl,
    )
