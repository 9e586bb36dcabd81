"""What a run says: its files read once, and the rates that all parts of a report share."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from demur.errors import FileError
from demur.evaluation.attacks.run import read_attacks
from demur.evaluation.attacks.success import AttackResult
from demur.evaluation.capability.divergence import RESULTS as DIVERGENCE
from demur.evaluation.capability.divergence import Divergence
from demur.evaluation.capability.measure import RESULTS as CAPABILITY
from demur.evaluation.capability.measure import CapabilityResult
from demur.evaluation.quality import Quality
from demur.evaluation.runner import (
    RESULTS,
    TRANSCRIPTS,
    VERDICTS,
    Agreeing,
    Findings,
    Result,
    against_plain,
    key_of,
    read_findings,
    total,
)
from demur.evaluation.statistics import Comparison, Rate, pareto
from demur.files import nearest, read_json, read_jsonl
from demur.records import Label, R, Transcript, Verdict, parse
from demur.runs import MANIFEST, TEST_LOG

VERBS = ("evaluate", "attack")
"""Whose runs are reported."""
PLAIN = "none"
"""The policy that does nothing: the model as it is."""
CEILING = "canned"
"""The policy that shares a gate and cannot fail behind it: what the gate allows, and no rival."""
DOSED = re.compile(r"(.+)@(\d+(?:\.\d+)?(?:e-?\d+)?)")
"""The name of a policy at another dose: NAME@0.8."""


class Answer(NamedTuple):
    """One reply and what the judge said of it."""

    transcript: Transcript
    verdict: Verdict

    @property
    def refused(self) -> bool:
        """Refused outright, as the tables count it."""
        return self.verdict.outcome == "refused"

    @property
    def judged(self) -> bool:
        """Whether the judge could say what it is."""
        return self.verdict.outcome is not None


Case = dict[str, Answer]
"""The answers to one prompt by policy."""
Group = tuple[str, str, str | None]
"""Set, label and kind."""


def first(case: Case) -> Transcript:
    """The prompt of a case, as its first transcript has it."""
    return next(iter(case.values())).transcript


@dataclass(frozen=True)
class Study:
    """One evaluation: its manifest, what it found, and its answers, each with the verdict that the figures are from."""

    folder: Path
    manifest: dict[str, Any]
    results: list[Result]
    answers: list[Answer]
    tried: dict[str, int]
    """Different policies measured so far on each set and task of this run; empty where no log is kept."""
    judges: list[Agreeing] = field(default_factory=list)
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)
    quality: list[Quality] = field(default_factory=list)
    capability: list[CapabilityResult] = field(default_factory=list)
    divergence: list[Divergence] = field(default_factory=list)
    attacks: list[AttackResult] = field(default_factory=list)

    @cached_property
    def policies(self) -> list[str]:
        """The best policy first, the others from the widest gap to the narrowest, the plain model last."""
        given = list(self.hashes)
        steered = [p for p in given if p != PLAIN] or given
        best = max([p for p in steered if p != CEILING] or steered, key=self.gap)
        rest = sorted((p for p in steered if p != best), key=self.gap, reverse=True)
        return [best, *rest, *(p for p in given if p == PLAIN and p not in steered)]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The hash of each policy."""
        found: dict[str, str] = {}
        for r in [*self.results, *self.capability, *self.divergence]:
            found.setdefault(r.policy, r.policy_hash)
        return found

    @property
    def best(self) -> str:
        """The policy of the widest gap; the ceiling of a gate only where there is no other."""
        return self.policies[0]

    def gap(self, policy: str) -> float:
        """The share of harmful requests that it refuses less the share of benign ones: what "best" means here."""
        harmful, benign = self.total(policy, "harmful"), self.total(policy, "benign")
        return (harmful.rate if harmful else 0.0) - (benign.rate if benign else 0.0)

    @cached_property
    def both(self) -> dict[str, tuple[Rate, Rate]]:
        """Harmful and benign refused, of the policies that were asked requests of both sorts."""
        found = {p: (self.total(p, "harmful"), self.total(p, "benign")) for p in self.policies}
        return {p: (h, b) for p, (h, b) in found.items() if h and b}

    @cached_property
    def front(self) -> list[str]:
        """The policies that no other beats at both, fewest benign refusals first; the ceiling of a gate is no rival."""
        return pareto({p: (h.rate, b.rate) for p, (h, b) in self.both.items() if p != CEILING})

    @cached_property
    def labels(self) -> list[Label]:
        """Which of harmful and benign there are."""
        return [label for label in ("harmful", "benign") if any(r.label == label for r in self.results)]

    @cached_property
    def groups(self) -> list[Group]:
        """Set, label and kind of the results, harmful first, else in their order."""
        found = dict.fromkeys((r.set, r.label, r.kind) for r in self.results)
        return sorted(found, key=lambda group: group[1] != "harmful")

    @cached_property
    def sets(self) -> list[str]:
        """Names of the prompt sets."""
        return list(dict.fromkeys(r.set for r in self.results))

    def cells(self, group: Group) -> dict[str, Result]:
        """The results on one group, by policy."""
        return {r.policy: r for r in self.results if (r.set, r.label, r.kind) == group}

    def of(self, policy: str, label: str | None = None) -> list[Result]:
        """The results of one policy, on the rows with one label if it is given."""
        return [r for r in self.results if r.policy == policy and label in (None, r.label)]

    def total(self, policy: str, label: str) -> Rate | None:
        """Refused among all rows with a label; None where there are none."""
        return total(self.results, policy, label)

    def acted(self, policy: str, label: str) -> Rate | None:
        """On how many rows with a label the policy acted."""
        rows = self.of(policy, label)
        return Rate.of(sum(r.opened for r in rows), sum(r.n + r.unjudged for r in rows)) if rows else None

    def outcomes(self, policy: str, label: str) -> Counter[str]:
        """How many of each outcome among all rows with a label."""
        return sum((Counter(r.outcomes) for r in self.of(policy, label)), Counter[str]())

    def broken(self, policy: str) -> Rate | None:
        """Degenerate text among all replies of a policy."""
        rows = self.of(policy)
        n = sum(r.n for r in rows)
        return Rate.of(sum(r.outcomes.get("degenerate", 0) for r in rows), n) if n else None

    def prompts(self, label: str) -> int:
        """Different prompts with a label."""
        return len({(a.transcript.set, a.transcript.id) for a in self.answers if a.transcript.label == label})

    @cached_property
    def cases(self) -> list[Case]:
        """The answers to each prompt by policy, in order of appearance."""
        found: dict[tuple[str, str], Case] = {}
        for answer in self.answers:
            found.setdefault((answer.transcript.set, answer.transcript.id), {})[answer.transcript.policy] = answer
        return list(found.values())

    @cached_property
    def pairs(self) -> list[tuple[Case, Case]]:
        """Harmful requests with their benign twins."""
        twins: dict[str, dict[str, list[Case]]] = {}
        for case in self.cases:
            if name := first(case).pair:
                twins.setdefault(name, {"harmful": [], "benign": []})[first(case).label].append(case)
        found = []
        for twin in twins.values():
            both = [(h, b) for h in twin["harmful"] for b in twin["benign"]]
            # Twins may be of two sets (jbb_harmful, jbb_benign); where two sets number their pairs alike, they are not.
            found += both if len(both) == 1 else [(h, b) for h, b in both if first(h).set == first(b).set]
        return found

    def told_apart(self, policy: str) -> Rate | None:
        """Pairs of which the harmful one was refused and the benign twin was not."""
        both = [(h[policy], b[policy]) for h, b in self.pairs if policy in h and policy in b]
        both = [(h, b) for h, b in both if h.judged and b.judged]
        return Rate.of(sum(h.refused and not b.refused for h, b in both), len(both)) if both else None

    def same_gate(self, policy: str) -> list[str]:
        """The other policies whose gate gave every request that both were asked the score that this one's gave."""
        scores: dict[str, dict[tuple[str, str], float]] = {}
        for t, _ in self.answers:
            if t.gate is not None:
                scores.setdefault(t.policy, {})[t.set, t.id] = t.gate
        mine = scores.get(policy, {})

        def agrees(theirs: dict[tuple[str, str], float]) -> bool:
            # The order of a batch moves a float32 score in its last figures.
            shared = mine.keys() & theirs.keys()
            return bool(shared) and all(isclose(mine[k], theirs[k], rel_tol=1e-3, abs_tol=1e-3) for k in shared)

        return [p for p in self.policies if p != policy and p in scores and agrees(scores[p])]

    @cached_property
    def families(self) -> dict[str, dict[float, str]]:
        """Policies that differ in dose only: of each family with at least two, dose → policy; a bare name is dose 1."""
        found: dict[str, dict[float, str]] = {}
        for p in self.policies:
            if at := DOSED.fullmatch(p):
                found.setdefault(at[1], {})[float(at[2])] = p
        for name, doses in found.items():
            if name in self.policies:
                doses.setdefault(1.0, name)
        return {name: dict(sorted(doses.items())) for name, doses in found.items() if len(doses) > 1}


def read_study(folder: Path) -> Study:
    """Reads the run folder of `demur evaluate` or `demur attack`; files that older runs do not have are done without.

    Raises:
        FileError: not such a run, or one that is not finished.
    """
    manifest = _manifest(folder)
    capability = _records(CapabilityResult, folder / CAPABILITY)
    settings = manifest.get("settings")
    only_capability = bool(capability) and isinstance(settings, dict) and settings.get("sets") == {}
    if only_capability and not (folder / RESULTS).is_file():
        found, answers = Findings(), []
    else:
        if missing := [name for name in (RESULTS, TRANSCRIPTS, VERDICTS) if not (folder / name).is_file()]:
            again = manifest.get("command") or f"demur evaluate --run {folder}"
            raise FileError(f"{folder} has no {missing[0]}, so the evaluation did not finish; go on with it: {again}")
        found = _findings(folder)
        answers = _answers(folder, found.results)
    return Study(
        folder=folder,
        manifest=manifest,
        results=found.results,
        answers=answers,
        tried=_tried(folder, {r.set for r in found.results} | {c.task for c in capability}),
        judges=found.judges,
        comparisons=found.comparisons or against_plain([t for t, _ in answers], [v for _, v in answers]),
        quality=found.quality,
        capability=capability,
        divergence=_records(Divergence, folder / DIVERGENCE),
        attacks=read_attacks(folder),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileError(f"run {folder} does not exist{nearest(folder)}")
    if not (folder / MANIFEST).is_file():
        raise FileError(f"{folder} is not a run (it has no {MANIFEST}); give a folder that `demur evaluate` wrote.")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("verb", "evaluate") not in VERBS:
        verb = manifest.get("verb") if isinstance(manifest, dict) else MANIFEST
        raise FileError(f"{folder} is a run of `{verb}`; a report needs one of `demur evaluate` or `demur attack`.")
    return manifest


def _findings(folder: Path) -> Findings:
    rows = read_json(folder / RESULTS)
    if not isinstance(rows, list) or not rows:
        raise FileError(f"{folder / RESULTS} holds no results; run `demur evaluate` with at least one prompt.")
    for row in rows:  # the first problem in words, before all files are read as one
        parse(Result, row, folder / RESULTS, FileError)
    try:
        return read_findings(folder)
    except ValueError as error:
        raise FileError(
            f"{folder}: {type(error).__name__} in what the run found; judge it anew with the `demur evaluate` command "
            "that made it, and the same --run."
        ) from error


def _answers(folder: Path, results: Sequence[Result]) -> list[Answer]:
    """The replies that the results count, each with the verdict of the judge that they are from.

    A run may hold replies of policies or rows that its last call did not ask for; those that it did stand first.
    """
    counted = {(r.policy, r.set, r.label, r.kind): r for r in results}
    verdicts = (parse(Verdict, row, folder / VERDICTS, FileError) for row in read_jsonl(folder / VERDICTS))
    given = {(v.judge, *key_of(v)): v for v in verdicts}
    left = {group: r.n + r.unjudged for group, r in counted.items()}
    outcomes: dict[tuple[Any, ...], Counter[str | None]] = {group: Counter() for group in counted}
    found = []
    for row in read_jsonl(folder / TRANSCRIPTS):
        t = parse(Transcript, row, folder / TRANSCRIPTS, FileError)
        group = (t.policy, t.set, t.label, t.kind)
        if not left.get(group):
            continue
        left[group] -= 1
        v = given.get((counted[group].judge, *key_of(t)))
        if v is None:
            raise _apart(folder, f"{counted[group].judge} has no verdict on {t.id} of {t.set} under {t.policy}")
        outcomes[group][v.outcome] += 1
        found.append(Answer(t, v))
    for group, r in counted.items():
        if outcomes[group] != Counter(r.outcomes) + Counter({None: r.unjudged}):
            raise _apart(folder, f"{RESULTS} and {VERDICTS} count {group[0]} on {group[1]} differently")
    return found


def _apart(folder: Path, why: str) -> FileError:
    return FileError(
        f"{folder}: its files do not belong together ({why}); judge the replies anew with the `demur evaluate` command "
        "that made the run, and the same --run."
    )


def _records(kind: type[R], path: Path) -> list[R]:
    rows = read_json(path) if path.is_file() else []
    return [parse(kind, row, path, FileError) for row in rows]


def _tried(folder: Path, sets: set[str]) -> dict[str, int]:
    log = folder.absolute().parent / TEST_LOG
    rows = list(read_jsonl(log)) if log.is_file() else []
    seen = {(row.get("set"), row.get("policy_hash")) for row in rows}
    return {name: count for name in sorted(sets) if (count := sum(s == name for s, _ in seen))}
