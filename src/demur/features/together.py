"""Features that refuse together (`--method effect`): from signals to candidates, to a set of them that makes the model say
no by itself, to no more of it than is needed. Every stage is written to the run's folder, and taken from there if it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.errors import SAEError
from demur.features.branches import Branches
from demur.features.candidates import Signals, candidates, gather
from demur.features.effect import Bench
from demur.features.optimise import rehearse
from demur.features.pruning import Pruned, dormant, interactions, prune
from demur.features.replies import Replies, beginnings
from demur.features.settings import FindSettings
from demur.records import Dormant, Feature, Interaction, Prompt, PromptSet, Record, Removal, evenly
from demur.runs import part

UNMENDED = (
    "raising no feature of the SAE makes the model refuse: descent let go of all of them; train the SAE on text with "
    "refusals in the chat template, or name --openings that the model itself would use."
)


class Amounts(Record):
    """What features are raised to, heaviest first."""

    amounts: dict[int, float]


class Chosen(Record):
    """Candidates in order of what they do."""

    features: tuple[Feature, ...]


class Links(Record):
    """How the chosen features stand to each other and to the rest."""

    interactions: tuple[Interaction, ...]
    dormant: tuple[Dormant, ...]


@dataclass(frozen=True)
class Together:
    """What the method found."""

    actuators: list[Feature]
    """The one that can least be done without first."""
    candidates: tuple[Feature, ...]
    pruned: tuple[Removal, ...]
    interactions: tuple[Interaction, ...]
    dormant: tuple[Dormant, ...]
    how: str


def find_together(
    bench: Bench,
    replies: Replies,
    harmful: Sequence[Prompt],
    benign: Sequence[Prompt],
    validation: PromptSet,
    settings: FindSettings,
    folder: Path | None = None,
) -> Together:
    """Features that together make the model refuse.

    Args:
        bench: Model and SAE.
        replies: To harmful training prompts.
        harmful: Training prompts to fit to.
        benign: Training prompts that are harmless.
        validation: Prompts on which effects are measured.
        settings: How many.
        folder: Of the run.

    Raises:
        SAEError: no feature, nor any set of them, makes the model refuse.
    """
    s, branches = settings, Branches(bench)
    talk = [p.conversation for p in benign]
    signals = part(folder, "signals", Signals, lambda: gather(bench, branches, replies, harmful, talk, s))
    listed = part(
        folder,
        "candidates",
        Chosen,
        lambda: Chosen(features=tuple(candidates(bench, branches, signals, validation, s))),
    ).features

    begun = signals.scores["rehearsal"]
    amounts = part(
        folder, "amounts", Amounts, lambda: Amounts(amounts=rehearse(bench, harmful, begun, signals.norm, s.seed))
    ).amounts
    if not amounts:
        raise SAEError(UNMENDED)
    openings = beginnings(bench, s.openings)
    bad = validation.where(label="harmful")
    scored = [row.conversation for row in bad.sample(s.scored).rows]
    pruned = part(
        folder,
        "pruned",
        Pruned,
        lambda: prune(bench, branches, amounts, scored, bad.sample(s.pruned).rows, openings, s.slack),
    )
    some = [p.conversation for p in evenly(harmful, s.attributed)]
    links = part(
        folder,
        "links",
        Links,
        lambda: Links(
            interactions=tuple(interactions(branches, pruned.amounts, scored, openings)),
            dormant=tuple(dormant(branches, list(pruned.amounts), some, openings, signals.levels)),
        ),
    )
    return Together(
        actuators=_actuators(pruned, listed),
        candidates=listed,
        pruned=pruned.path,
        interactions=links.interactions,
        dormant=links.dormant,
        how=_in_words(signals, listed, amounts, pruned, len(harmful), s),
    )


def _actuators(pruned: Pruned, listed: Sequence[Feature]) -> list[Feature]:
    known = {f.id: f.scores for f in listed}
    total = sum(pruned.amounts.values())
    return [
        Feature(id=f, role="actuator", level=amount, scores={"candidate": amount / total, **known[f]})
        for f, amount in pruned.amounts.items()
    ]


def _in_words(
    signals: Signals,
    listed: Sequence[Feature],
    amounts: dict[int, float],
    pruned: Pruned,
    prompts: int,
    settings: FindSettings,
) -> str:
    dropped = ", ".join(f"{n} {why}" for why, n in signals.dropped.items())
    steps = [r for r in pruned.path if r.gone]
    after = steps[-1].refused if steps else pruned.whole
    named = ", ".join(f"{name} {len(ranking)}" for name, ranking in signals.scores.items())
    tried = sum("harmful_refused" in f.scores for f in listed)
    return (
        f"Actuators: after leaving out features that are not about refusing ({dropped}), {len(listed)} candidates from "
        f"several signals (features named: {named}) merged by reciprocal rank fusion; raised singly on validation "
        f"prompts ({settings.scored} harmful, {settings.scored} harmless, by the odds of a refusal; the {tried} best on "
        f"{settings.singly} each by generating); a displacement learnt from {len(settings.openings)} first sentences of "
        f"refusals, and then from what the model says when it is free, on {prompts} harmful training prompts; made of "
        f"features by orthogonal matching pursuit, and their amounts rehearsed in the same way; of {len(amounts)} "
        f"features {len(pruned.amounts)} kept by backward elimination ({pruned.whole:.0%} of {settings.pruned} harmful "
        f"validation prompts refused before, {after:.0%} after)."
    )
