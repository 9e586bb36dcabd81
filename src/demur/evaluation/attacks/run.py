"""All attacks of a run: their transcripts and verdicts, and `attacks.json`, which says what was won.

The last reply of every attack is among the run's transcripts and results; what stands beside it (earlier turns, controls)
has a folder of its own, with the same files. All of it is judged anew from files; nothing is generated twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from demur.evaluation.attacks import conversations, crescendo, gcg, recovery, scripts
from demur.evaluation.attacks.attackers import AttackerSettings, open_attacker
from demur.evaluation.attacks.conversations import Target
from demur.evaluation.attacks.crescendo import CrescendoSettings
from demur.evaluation.attacks.gcg import GCGSettings
from demur.evaluation.attacks.recovery import RecoverySettings
from demur.evaluation.attacks.scripts import Script
from demur.evaluation.attacks.success import AttackResult, Judged, by_family
from demur.evaluation.judging.judges import Judge
from demur.evaluation.runner import (
    TRANSCRIPTS,
    VERDICTS,
    EvaluationSettings,
    Findings,
    conclude,
    headline_verdicts,
    judge_all,
    keep,
    key_of,
    named,
    read_transcripts,
    respond,
)
from demur.files import read_json, read_jsonl, write_json
from demur.models.load import LanguageModel
from demur.records import Policy, Prompt, PromptSet, Transcript, Verdict
from demur.runs import rows_hash
from demur.sae.sae import SAE

ATTACKS = "attacks.json"


class AttackSettings(EvaluationSettings):
    """How replies to attacks are made."""

    quality: bool = False
    """Measure the words too; evaluations of plain prompts do."""


Results = Callable[[Sequence[Judged]], list[AttackResult]]


@dataclass(frozen=True)
class Plan:
    """Which attacks, on what; an attack that is None (or has no sets) is not made."""

    sets: Mapping[str, PromptSet] = field(default_factory=dict)
    """Ready-made prompts with families, by the attack's name."""
    scripts: Sequence[Script] | None = None
    live: tuple[Sequence[Prompt], CrescendoSettings, AttackerSettings] | None = None
    gcg: tuple[Sequence[Prompt], GCGSettings] | None = None
    recovery: tuple[Sequence[Prompt], RecoverySettings] | None = None

    @property
    def hashes(self) -> dict[str, str]:
        """By attack, twelve hex digits of its rows and settings."""
        parts: dict[str, Sequence[Any]] = {name: prompts.rows for name, prompts in self.sets.items()}
        if self.scripts is not None:
            parts[scripts.NAME] = self.scripts
        if self.live is not None:
            asked, how, attacker = self.live
            parts[crescendo.NAME] = [*asked, how, attacker.who]
        for name, part in ((gcg.NAME, self.gcg), (recovery.NAME, self.recovery)):
            if part is not None:
                parts[name] = [*part[0], part[1]]
        return {name: rows_hash(rows) for name, rows in parts.items()}


@dataclass(frozen=True)
class Fought:
    """What one attack heard."""

    last: Sequence[Transcript]
    """What is judged."""
    results: Results
    """From verdicts on all of it."""
    beside: Sequence[Transcript] = ()
    folder: Path | None = None
    """Of the latter."""


def fight(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    policies: Sequence[Policy],
    plan: Plan,
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    folder: Path,
) -> tuple[Findings, list[AttackResult]]:
    """Makes the attacks, judges every reply, writes what was won. The first judge is the one that attackers listen to.

    Raises:
        PromptError: a prompt, or a conversation, that does not fit the context.
        PolicyError, SAEError: a policy that does not fit the model, or that an attack is not for.
        EndpointError, JudgeError: an attacker or a judge that is lost; what there is stands.
    """
    fought = []
    for name, prompts in plan.sets.items():
        heard = respond(lm, saes, policies, [_unsourced(prompts)], settings, folder)
        fought.append(Fought(heard, partial(by_family, name)))

    def target(name: str) -> Target:
        return Target(lm, saes, settings, folder / name)

    if plan.scripts is not None:
        where = target("crescendo")
        fought.append(_conversations(scripts.NAME, where, scripts.converse(where, policies, plan.scripts)))
    if plan.live is not None:
        goals, how, who = plan.live
        where, attacker = target("crescendo-live"), open_attacker(who, lm)
        found = crescendo.attack(where, policies, goals, attacker, judges[0], how, who.attacker_prompt)
        fought.append(_conversations(crescendo.NAME, where, found))
    if plan.gcg is not None:
        where = target("gcg")
        last, beside = gcg.attack(where, policies, plan.gcg[0], judges[0], plan.gcg[1])
        results = partial(gcg.results, searches=gcg.read_searches(where.folder))
        fought.append(Fought(last, results, beside, where.folder))
    if plan.recovery is not None:
        where = target("recovery")
        last, beside = recovery.attack(where, policies, plan.recovery[0], judges[0], plan.recovery[1])
        results = partial(recovery.results, fits=recovery.read_fits(where.folder))
        fought.append(Fought(last, results, beside, where.folder))
    return _judged(lm, fought, judges, settings, folder)


def _conversations(name: str, where: Target, found: conversations.Conversations) -> Fought:
    return Fought(found.last, partial(conversations.results, name, found), found.beside, where.folder)


def _unsourced(prompts: PromptSet) -> PromptSet:
    # A row's source would stand for the set's name, and the set is the attack.
    return prompts.model_copy(update={"rows": tuple(r.model_copy(update={"source": None}) for r in prompts.rows)})


def _judged(
    lm: LanguageModel, fought: Sequence[Fought], judges: Sequence[Judge], settings: EvaluationSettings, folder: Path
) -> tuple[Findings, list[AttackResult]]:
    last = [t for f in fought for t in f.last]
    keep(folder, last)
    findings = conclude(lm, last, judges, settings, folder)
    verdicts = [Verdict.model_validate(row) for row in read_jsonl(folder / VERDICTS)]
    won = []
    for f in fought:
        judged = list(zip(f.last, headline_verdicts(f.last, verdicts, judges), strict=True))
        if f.folder is not None and f.beside:
            heard = headline_verdicts(f.beside, judge_all(judges, f.beside, f.folder), judges)
            judged += zip(f.beside, heard, strict=True)
        won += f.results(judged)
    write_attacks(folder, won)
    return findings, won


def write_attacks(folder: Path, won: Sequence[AttackResult]) -> None:
    """Writes `attacks.json`; attacks that this call did not make stay, behind those that it did."""
    made = {r.attack for r in won}
    kept = [r for r in read_attacks(folder) if r.attack not in made]
    write_json(folder / ATTACKS, [r.model_dump(mode="json") for r in [*won, *kept]])


def read_attacks(folder: Path) -> list[AttackResult]:
    """What was won in a run; empty where nothing was tried."""
    path = folder / ATTACKS
    return [AttackResult.model_validate(row) for row in read_json(path)] if path.is_file() else []


def families_won(
    folder: Path, policies: Sequence[Policy], sets: Sequence[PromptSet], judges: Sequence[Judge]
) -> list[AttackResult]:
    """What was won by the rows of a plain evaluation that have a family, set by set; written where there are any."""
    asked = {(p.name, name, row.id) for p in policies for s in sets for name, row in named(s) if row.family}
    if not asked:
        return []
    rows = [t for t in read_transcripts(folder / TRANSCRIPTS) if key_of(t) in asked]
    verdicts = [Verdict.model_validate(row) for row in read_jsonl(folder / VERDICTS)]
    found: dict[str, list[Judged]] = {}
    for t, v in zip(rows, headline_verdicts(rows, verdicts, judges), strict=True):
        found.setdefault(t.set, []).append((t, v))
    won = [r for name, judged in found.items() for r in by_family(name, judged)]
    write_attacks(folder, won)
    return won
