"""The gate on the reply: thresholds that leave the plain model's replies to benign prompts alone, and what it catches.

The score of every token of every reply is read once and kept; smoothing and thresholds are arithmetic on them.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

from demur.calibration.scores import conversation_hash
from demur.calibration.settings import CalibrationSettings
from demur.calibration.strata import harmful_by_source, strata
from demur.calibration.thresholds import Promise, just_above, promise
from demur.evaluation.statistics import Rate
from demur.features.effect import Bench, answers
from demur.files import to_line, whole_lines
from demur.records import Continuation, Gate, Outcome, Policy, Prompt, PromptSet, Record, evenly_of
from demur.steering.generate import decide
from demur.steering.policies import NONE

REPLIES = "replies.jsonl"
AT_A_TIME = 128
"""Replies made and read between two writes to the file."""
TAUS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Tokens over which scores may be smoothed."""
ORDINARY = 95
"""The gate shuts again where the reply reads as this share of the tokens of benign replies do, in percent."""


class Said(Record):
    """A reply of the plain model, and the sensor's score of each of its tokens."""

    id: str
    outcome: Outcome | None = None
    scores: tuple[float, ...]


class LateReport(Record):
    """What the gate on the reply does to the plain model's replies to validation prompts."""

    promise: Promise
    """Of benign replies: their highest smoothed score, against the budget."""
    benign: Rate
    """Replies to benign prompts that open it."""
    caught: Rate | None = None
    """Replies to harmful prompts that comply and open it; None where none complies."""
    slipped: Rate | None = None
    """The same of those whose prompt does not open the gate on the prompt at the level in force."""
    by_token: tuple[int, int, int] | None = None
    """A quarter, half, three quarters of those that are caught are by this token of the reply, from 1."""


def smoothed(scores: Sequence[float], tau: float) -> list[float]:
    """`smooth ← smooth + (score − smooth) / τ` from 0, as `Continuation` has it."""
    found, smooth = [], 0.0
    for score in scores:
        smooth += (score - smooth) / tau
        found.append(smooth)
    return found


def set_late(
    bench: Bench,
    base: Policy,
    late: Continuation,
    prompts: PromptSet,
    shut: set[str],
    settings: CalibrationSettings,
    folder: Path | None,
) -> tuple[Continuation, LateReport]:
    """Where the gate on the reply opens and shuts, and how much it smooths.

    `opens` lies just above what all but `late_budget` of the benign replies reach (split-conformal); of TAUS that is taken
    which catches most harmful replies then, `closes` where ordinary text lies below. `shut` has the ids of the harmful
    prompts that do not open the gate on the prompt.

    Raises:
        PromptError: no benign or no harmful prompts.
    """
    good = evenly_of(list(strata(prompts).values()), settings.late_replies)
    bad = evenly_of(list(harmful_by_source(prompts).values()), settings.late_replies)
    said = _read(bench, base, late, [prompts.rows[i] for i in (*good, *bad)], settings, folder)
    benign = [s for s in said[: len(good)] if s.scores]
    harmful = [s for s in said[len(good) :] if s.scores and s.outcome == "complied"]
    options = [_at(tau, late, benign, harmful, shut, settings) for tau in TAUS]
    return max(options, key=lambda option: (_share(option[1].slipped), _share(option[1].caught)))


def _share(rate: Rate | None) -> float:
    return rate.rate if rate else 0.0


def _at(
    tau: float,
    late: Continuation,
    benign: Sequence[Said],
    harmful: Sequence[Said],
    shut: set[str],
    how: CalibrationSettings,
) -> tuple[Continuation, LateReport]:
    traces = [smoothed(s.scores, tau) for s in benign]
    made = promise([max(t) for t in traces], how.late_budget)
    opens = made.threshold
    usual = sorted(score for t in traces for score in t)
    closes = min(opens, just_above(usual[min(len(usual) - 1, ORDINARY * len(usual) // 100)]))
    first = {s.id: next((i for i, x in enumerate(smoothed(s.scores, tau), 1) if x >= opens), None) for s in harmful}
    places = [i for i in first.values() if i is not None]
    past = [i for name, i in first.items() if name in shut]
    report = LateReport(
        promise=made,
        benign=Rate.of(sum(max(t) >= opens for t in traces), len(traces)),
        caught=Rate.of(len(places), len(first)) if first else None,
        slipped=Rate.of(sum(i is not None for i in past), len(past)) if past else None,
        by_token=_quarters(places),
    )
    return late.model_copy(update={"opens": opens, "closes": closes, "tau": tau}), report


def _quarters(places: Sequence[int]) -> tuple[int, int, int] | None:
    if not places:
        return None
    low, middle, high = quantiles(places, n=4, method="inclusive") if len(places) > 1 else [places[0]] * 3
    return round(low), round(middle), round(high)


def _read(
    bench: Bench,
    base: Policy,
    late: Continuation,
    rows: Sequence[Prompt],
    how: CalibrationSettings,
    folder: Path | None,
) -> list[Said]:
    assert base.gate is not None
    # Unsmoothed, and never open: what is kept is the score of every token by itself.
    each = late.model_copy(update={"opens": 1e30, "closes": 1e30, "tau": 1.0})
    reading = base.model_copy(update={"gate": Gate(sensor=base.gate.sensor, threshold=0.0, continuation=each)})
    dtype = str(next(bench.lm.model.parameters()).dtype).removeprefix("torch.")
    sensor = f"{reading.hash} {dtype} {how.max_new_tokens}"
    path = folder / REPLIES if folder else None
    kept = whole_lines(path) if path else []
    known = {
        r["prompt"]: Said(id="", outcome=r.get("outcome"), scores=r["scores"]) for r in kept if r["sensor"] == sensor
    }
    keys = [conversation_hash(row.conversation) for row in rows]
    missing = list({k: row for k, row in zip(keys, rows, strict=True) if k not in known}.items())
    for start in range(0, len(missing), AT_A_TIME):
        some = missing[start : start + AT_A_TIME]
        what = f"answering plainly, {start + 1} to {start + len(some)} of {len(missing)}"
        replies = answers(bench, [(NONE, row) for _, row in some], how.max_new_tokens, what)
        ids = [bench.lm.tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in replies]
        seen = decide(bench.lm, bench.saes, [row.conversation for _, row in some], reading, bench.batch, ids)
        made = {
            k: Said(id="", outcome=a.outcome, scores=s.get("trace", ()))
            for (k, _), a, s in zip(some, replies, seen, strict=True)
        }
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(
                    to_line({"sensor": sensor, "prompt": k, "outcome": s.outcome, "scores": list(s.scores)})
                    for k, s in made.items()
                )
        known |= made
    return [known[k].model_copy(update={"id": row.id}) for k, row in zip(keys, rows, strict=True)]
