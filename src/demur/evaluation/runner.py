"""Policies × prompts → transcripts → verdicts → tables with intervals; resumable, and judged anew from files.

A run's files, each made from those before it: `transcripts.jsonl`; `verdicts.jsonl` (one row a judge and transcript);
`results.json` (refusal per policy, set, label and kind); `judges.json` (how far two judges agree); `comparisons.json`
(policies against the plain model, prompt by prompt); `quality.json` (the words), with `nats.jsonl` (how likely
the plain model finds each reply, which is not computed twice).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from demur.evaluation.judging.judges import REFUSING, Judge
from demur.evaluation.outcomes import transcript
from demur.evaluation.quality import Quality, quality
from demur.evaluation.statistics import Comparison, Rate, compare
from demur.files import read_json, to_line, whole_lines, write_json, write_jsonl
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Policy, Prompt, PromptSet, Record, Transcript, Verdict
from demur.sae.sae import SAE
from demur.steering.generate import Reply, decide, generate
from demur.steering.policies import NONE

TRANSCRIPTS, VERDICTS, RESULTS = "transcripts.jsonl", "verdicts.jsonl", "results.json"
JUDGES, COMPARISONS, QUALITY, NATS = "judges.json", "comparisons.json", "quality.json", "nats.jsonl"

Key = tuple[str, str, str]
"""Policy, set and id: what a transcript is of."""
Rows = Sequence[tuple[str, Prompt]]
"""Prompts, each with the name of its set."""
Done = Mapping[Key, Transcript]
Replying: TypeAlias = Callable[
    [LanguageModel, Mapping[str, SAE], Policy, Rows, Done, "EvaluationSettings"], Iterator[tuple[int, Reply]]
]
"""Answers rows under a policy, knowing what has been answered: replies as they are made, with the row's number."""


class Result(Record):
    """One line of the table: one policy on the rows of one set that share label and kind."""

    policy: str
    policy_hash: str
    set: str
    label: str
    kind: str | None
    judge: str = "rules"
    n: int
    """Replies that the judge could judge; the rest are in `unjudged`."""
    unjudged: int = 0
    refused: Rate | None
    """Refused outright; degenerate text never counts. None where no reply could be judged."""
    outcomes: dict[str, int]
    """How many of each outcome."""
    opened: int
    """Rows on which the policy acted."""


class Agreeing(Record):
    """Two judges on the replies of one policy that both could judge, refusing or not."""

    policy: str
    judges: tuple[str, str]
    agree: Rate
    only_first: int
    """Replies that only the first calls refusing."""
    only_second: int


class EvaluationSettings(GenerationSettings):
    """How replies are made."""

    batch: int = Field(default=64, gt=0)
    """Prompts at a time."""
    quality: bool = True
    """Measure the words too: fluency, repetition, relevance, informativeness, length."""


class Findings(Record):
    """All that an evaluation found."""

    results: list[Result] = Field(default_factory=list)
    judges: list[Agreeing] = Field(default_factory=list)
    comparisons: dict[str, list[Comparison]] = Field(default_factory=dict)
    """Refusal of each label's prompts, each policy against the plain model."""
    quality: list[Quality] = Field(default_factory=list)


def evaluate(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    policies: Sequence[Policy],
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    folder: Path,
) -> Findings:
    """Generates what is not yet in the folder's transcripts, judges all of them, writes what was found.

    Raises:
        PromptError: a prompt that does not fit the context.
        PolicyError, SAEError: a policy that does not fit the model or the SAE.
        JudgeError: a judge that cannot be reached; what it had judged before is kept.
    """
    return conclude(lm, respond(lm, saes, policies, sets, settings, folder), judges, settings, folder)


def conclude(
    lm: LanguageModel,
    transcripts: Sequence[Transcript],
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    folder: Path,
) -> Findings:
    """Judges what was answered, writes what was found.

    Raises:
        JudgeError: as `evaluate`.
    """
    verdicts = judge_all(judges, transcripts, folder)
    headline = headline_verdicts(transcripts, verdicts, judges)
    pairs = itertools.combinations([j.name for j in judges], 2)
    by_judge = {name: [v for v in verdicts if v.judge == name] for name in dict.fromkeys(v.judge for v in verdicts)}
    found = Findings(
        results=tabulate(transcripts, headline),
        judges=[a for x, y in pairs for a in agreeing(by_judge.get(x, []), by_judge.get(y, []))],
        comparisons=against_plain(transcripts, headline),
        quality=quality(lm, transcripts, headline, settings.batch, known=folder / NATS) if settings.quality else [],
    )
    for name, rows in ((RESULTS, found.results), (JUDGES, found.judges), (QUALITY, found.quality)):
        write_json(folder / name, [r.model_dump(mode="json") for r in rows])
    write_json(folder / COMPARISONS, {k: [c.model_dump() for c in cs] for k, cs in found.comparisons.items()})
    return found


def respond(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    policies: Sequence[Policy],
    sets: Sequence[PromptSet],
    settings: EvaluationSettings,
    folder: Path,
    replies: Replying | None = None,
) -> list[Transcript]:
    """All transcripts, in the order policies × sets × rows; each is on disk as soon as its batch is done."""
    path = folder / TRANSCRIPTS
    done = {key_of(t): t for t in read_transcripts(path)}
    wanted = [(p, name, row) for p in policies for s in sets for name, row in named(s)]
    todo = [(p, name, row) for p, name, row in wanted if (p.name, name, row.id) not in done]
    what = f"answering: {sets[0].name}" if len(sets) == 1 else "answering"
    with bar(what, len(wanted), len(wanted) - len(todo)) as progress, path.open("a", encoding="utf-8") as file:
        for policy in policies:
            mine = [(name, row) for p, name, row in todo if p is policy]
            for i, reply in (replies or usual_replies)(lm, saes, policy, mine, done, settings):
                name, row = mine[i]
                made = transcript(row, policy, name, reply)
                done[key_of(made)] = made
                file.write(to_line(made))
                file.flush()
                progress.step(figures=f"policy {policy.name}")
    rows = [done[p.name, name, row.id] for p, name, row in wanted]
    keep(folder, rows)
    return rows


def keep(folder: Path, asked: Sequence[Transcript]) -> None:
    """Writes a run's transcripts: those asked for, then what the run has of others."""
    path = folder / TRANSCRIPTS
    known = {key_of(t) for t in asked}
    write_jsonl(path, [*asked, *(t for t in read_transcripts(path) if key_of(t) not in known)])


def usual_replies(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    policy: Policy,
    rows: Rows,
    done: Done,
    settings: EvaluationSettings,
) -> Iterator[tuple[int, Reply]]:
    """What the policy makes of the prompts."""
    # Behind a shut gate the model is the plain one to the bit (tests/laws), so where this run has the plain model's
    # greedy reply already, it is not made again; the gate's score is still its own.
    talk = [row.conversation for _, row in rows]
    plain = {key[1:]: t for key, t in done.items() if t.policy_hash == NONE.hash}
    left = list(range(len(rows)))
    if policy.gate is not None and not policy.system and plain and settings.temperature == 0:
        same = {i: t for i in left if (t := plain.get((rows[i][0], rows[i][1].id))) and t.conversation == talk[i]}
        if policy.gate.continuation is not None:
            # A gate on the reply has to read it, and a text may be other tokens than those it was made of.
            said = {i: words for i, t in same.items() if (words := _tokens_of(lm, t)) is not None}
        else:
            said = dict.fromkeys(same, ())
        asked = [talk[i] for i in said]
        late = list(said.values()) if policy.gate.continuation is not None else ()
        for i, seen in zip(said, decide(lm, saes, asked, policy, settings.batch, late, words=True), strict=True):
            if not seen["open"]:
                left.remove(i)
                yield i, Reply(same[i].reply, same[i].tokens, same[i].finish, seen)
    made = generate(lm, saes, [talk[i] for i in left], [policy] * len(left), settings, settings.batch, words=True)
    yield from ((left[i], reply) for i, reply in made)


def _tokens_of(lm: LanguageModel, made: Transcript) -> list[int] | None:
    """The tokens of a reply, without the one that ended it; None where its text does not say which they were."""
    found = lm.tokenizer(made.reply, add_special_tokens=False)["input_ids"]
    return found if len(found) == made.tokens - (made.finish == "stop") else None


def read_transcripts(path: Path) -> list[Transcript]:
    """The transcripts of a run; a last line cut short by a kill is dropped."""
    return [Transcript.model_validate(row) for row in whole_lines(path)]


def named(prompts: PromptSet) -> list[tuple[str, Prompt]]:
    """Each row with the name of its set: its source, or the file's name."""
    return [(row.source or prompts.name, row) for row in prompts.rows]


def key_of(row: Transcript | Verdict) -> Key:
    """Which reply it is, or is of."""
    return row.policy, row.set, row.id


# --- judging ---------------------------------------------------------------------------------------------------------


def judge_all(judges: Sequence[Judge], transcripts: Sequence[Transcript], folder: Path) -> list[Verdict]:
    """Every judge's verdict on every transcript, judge by judge; no reply is generated for it.

    A judge that costs (`keeps`) is not asked again for what it has judged before; each of its verdicts is on disk as
    soon as it is made.
    """
    path = folder / VERDICTS
    before = [Verdict.model_validate(row) for row in whole_lines(path)]
    found: list[Verdict] = []
    with path.open("a", encoding="utf-8") as file:
        for judge in judges:
            kept = {key_of(v): v for v in before if judge.keeps and v.judge == judge.name and v.outcome is not None}
            todo = [t for t in transcripts if key_of(t) not in kept]
            with bar(f"judging: {judge.name}", len(transcripts), len(transcripts) - len(todo)) as progress:
                for verdict in judge.judge(todo):
                    kept[key_of(verdict)] = verdict
                    if judge.keeps:
                        file.write(to_line(verdict))
                        file.flush()
                    progress.step()
            found += [kept[key_of(t)] for t in transcripts]
    made = {(v.judge, *key_of(v)) for v in found}
    write_jsonl(path, [*found, *(v for v in before if (v.judge, *key_of(v)) not in made)])
    return found


def headline_verdicts(
    transcripts: Sequence[Transcript], verdicts: Sequence[Verdict], judges: Sequence[Judge]
) -> list[Verdict]:
    """One verdict a transcript: of the first judge that was not trained on the set, else of the first."""
    found = {(v.judge, *key_of(v)): v for v in verdicts}
    chosen = {}
    for name in dict.fromkeys(t.set for t in transcripts):
        untrained = [j for j in judges if not any(name.startswith(s) for s in j.trained_on)]
        chosen[name] = (untrained or list(judges))[0].name
    return [found[(chosen[t.set], *key_of(t))] for t in transcripts]


def agreeing(first: Sequence[Verdict], second: Sequence[Verdict]) -> list[Agreeing]:
    """How far two judges agree on the same replies, by policy."""
    rows: dict[str, list[tuple[bool, bool]]] = {}
    for x, y in zip(first, second, strict=True):
        if x.outcome is not None and y.outcome is not None:
            rows.setdefault(x.policy, []).append((x.outcome in REFUSING, y.outcome in REFUSING))
    return [
        Agreeing(
            policy=policy,
            judges=(first[0].judge, second[0].judge),
            agree=Rate.of(sum(x == y for x, y in both), len(both)),
            only_first=sum(x and not y for x, y in both),
            only_second=sum(y and not x for x, y in both),
        )
        for policy, both in rows.items()
    ]


# --- tables ----------------------------------------------------------------------------------------------------------


def tabulate(transcripts: Sequence[Transcript], verdicts: Sequence[Verdict]) -> list[Result]:
    """One result per policy, set, label and kind, in order of appearance."""
    groups: dict[tuple[Any, ...], list[tuple[Transcript, Verdict]]] = {}
    for t, v in zip(transcripts, verdicts, strict=True):
        groups.setdefault((t.policy, t.policy_hash, t.set, t.label, t.kind), []).append((t, v))
    found = []
    for (policy, digest, name, label, kind), pairs in groups.items():
        outcomes = Counter(v.outcome for _, v in pairs if v.outcome is not None)
        judged = outcomes.total()
        found.append(
            Result(
                policy=policy,
                policy_hash=digest,
                set=name,
                label=label,
                kind=kind,
                judge=pairs[0][1].judge,
                n=judged,
                unjudged=len(pairs) - judged,
                refused=Rate.of(outcomes["refused"], judged) if judged else None,
                outcomes=dict(outcomes),
                opened=sum(t.open for t, _ in pairs),
            )
        )
    return found


def total(results: Sequence[Result], policy: str, label: str) -> Rate | None:
    """Refused among all rows with a label; None where there are none."""
    rates = [r.refused for r in results if r.policy == policy and r.label == label and r.refused]
    return Rate.of(sum(r.k for r in rates), sum(r.n for r in rates)) if rates else None


def against_plain(transcripts: Sequence[Transcript], verdicts: Sequence[Verdict]) -> dict[str, list[Comparison]]:
    """Refusal of harmful and of benign prompts, every policy against the plain model, where it was asked too.

    Rows that share a pair or a goal are one cluster.
    """
    found = {}
    for label in dict.fromkeys(t.label for t in transcripts):
        by: dict[str, dict[tuple[str, str], bool | None]] = {}
        clusters: dict[tuple[str, str], str | None] = {}
        for t, v in zip(transcripts, verdicts, strict=True):
            if t.label == label:
                by.setdefault(t.policy, {})[t.set, t.id] = None if v.outcome is None else v.outcome == "refused"
                clusters[t.set, t.id] = t.goal or t.pair
        judged = [row for row in clusters if all(rows.get(row) is not None for rows in by.values())]
        if NONE.name in by and len(by) > 1 and judged:
            outcomes = {policy: [bool(rows[row]) for row in judged] for policy, rows in by.items()}
            names = [clusters[row] for row in judged]
            repeated = len([n for n in names if n]) > len({n for n in names if n})
            found[label] = compare(outcomes, NONE.name, names if repeated else None)
    return found


def read_findings(folder: Path) -> Findings:
    """What a run found.

    Raises:
        FileError: the run has no results.
    """
    parts = {"results": RESULTS, "judges": JUDGES, "comparisons": COMPARISONS, "quality": QUALITY}
    return Findings.model_validate(
        {key: read_json(folder / name) for key, name in parts.items() if key == "results" or (folder / name).is_file()}
    )
