"""The evaluation run: resumption, judging anew, even samples, and rates that are counted right."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from demur.errors import JudgeError
from demur.evaluation import runner
from demur.evaluation.judging.rules import rules
from demur.evaluation.runner import (
    TRANSCRIPTS,
    VERDICTS,
    EvaluationSettings,
    Findings,
    conclude,
    evaluate,
    read_findings,
    read_transcripts,
)
from demur.files import read_jsonl
from demur.records import Prompt, PromptSet, Transcript, Verdict
from demur.steering.policies import NONE
from demur.verbs.evaluate import log_and_count
from tests import tiny

PROMPTS = PromptSet(
    name="ours",
    rows=tuple(
        Prompt(id=f"r{i}", prompt=f"Tell me about {i}", label="harmful" if i % 3 == 0 else "benign", kind=k)
        for i, k in enumerate(["harmful", "plain", "plain"] * 4)
    ),
)
SETTINGS = EvaluationSettings(max_new_tokens=4, batch=3)
POLICIES = [tiny.policy(name="a"), tiny.policy(name="b", threshold=1e9)]


def go(folder, prompts=PROMPTS, policies=POLICIES, judges=(rules,)) -> Findings:
    folder.mkdir(exist_ok=True)
    lm = tiny.lm("llama", torch.float64)
    return evaluate(lm, tiny.saes(), policies, [prompts], judges, SETTINGS, folder)


class Scripted:
    """A judge that costs: says what it was told to, counts what it was asked, and may stop answering."""

    keeps = True

    def __init__(self, name: str, outcome: str | None, trained_on: Sequence[str] = (), stops_after: int = 99) -> None:
        self.name, self.outcome, self.trained_on = name, outcome, frozenset(trained_on)
        self.stops_after, self.asked = stops_after, 0

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        for t in transcripts:
            if self.asked == self.stops_after:
                raise JudgeError("it hung up.")
            self.asked += 1
            yield Verdict(id=t.id, policy=t.policy, set=t.set, judge=self.name, outcome=self.outcome)


def test_a_run_cut_short_resumes_to_the_same_files(tmp_path):
    wanted = go(tmp_path / "whole")
    whole = (tmp_path / "whole" / TRANSCRIPTS).read_text()
    (tmp_path / "cut").mkdir()
    # A kill in the middle of a line: what is complete counts, the rest is made again.
    (tmp_path / "cut" / TRANSCRIPTS).write_text(whole[: len(whole) // 3])
    assert go(tmp_path / "cut") == wanted
    assert (tmp_path / "cut" / TRANSCRIPTS).read_text() == whole


def test_replies_are_judged_anew_without_generating(tmp_path, monkeypatch):
    go(tmp_path / "run")
    path = tmp_path / "run" / TRANSCRIPTS
    rows = [t.model_copy(update={"reply": "I'm sorry, but I can't help with that."}) for t in read_transcripts(path)]
    path.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    monkeypatch.setattr("demur.evaluation.runner.generate", lambda *a, **k: iter(()))
    again = go(tmp_path / "run")
    assert all(r.refused is not None and r.refused.rate == 1 for r in again.results)
    assert read_findings(tmp_path / "run") == again


def test_a_judge_that_costs_is_asked_once_and_stops_without_loss(tmp_path, monkeypatch):
    stopping = Scripted("dear", "refused", stops_after=7)
    with pytest.raises(JudgeError):
        go(tmp_path / "run", judges=[stopping])
    assert len(list(read_jsonl(tmp_path / "run" / VERDICTS))) == 7
    monkeypatch.setattr("demur.evaluation.runner.generate", lambda *a, **k: iter(()))
    going = Scripted("dear", "refused")
    first = go(tmp_path / "run", judges=[going])
    assert going.asked == 24 - 7
    idle = Scripted("dear", "complied")
    assert go(tmp_path / "run", judges=[idle]) == first
    assert idle.asked == 0


def test_what_no_judge_can_judge_is_counted_and_asked_again(tmp_path):
    found = go(tmp_path / "run", judges=[Scripted("dumb", None)])
    assert all(r.refused is None and r.n == 0 and r.unjudged in (4, 8) for r in found.results)
    again = Scripted("dumb", "refused")
    assert all(r.unjudged == 0 for r in go(tmp_path / "run", judges=[again]).results)
    assert again.asked == 24


def test_two_judges_stand_side_by_side(tmp_path):
    found = go(tmp_path / "run", judges=[Scripted("hard", "refused"), Scripted("soft", "complied")])
    assert {r.judge for r in found.results} == {"hard"}
    assert [(a.policy, a.judges, a.agree.k, a.only_first, a.only_second) for a in found.judges] == [
        (p, ("hard", "soft"), 0, 12, 0) for p in "ab"
    ]
    assert {(v["judge"], v["outcome"]) for v in read_jsonl(tmp_path / "run" / VERDICTS)} == {
        ("hard", "refused"),
        ("soft", "complied"),
    }


def test_nothing_answered_is_nothing_found_whoever_judges(tmp_path):
    found = conclude(tiny.lm(), [], [Scripted("hard", "refused"), Scripted("soft", "complied")], SETTINGS, tmp_path)
    assert not found.results and not found.judges
    assert log_and_count(tmp_path / "run", set()) == {}


def test_a_judge_trained_on_a_set_leaves_it_to_another(tmp_path):
    judges = [Scripted("taught", "refused", trained_on=["our"]), Scripted("fresh", "complied")]
    assert {r.judge for r in go(tmp_path / "run", judges=judges).results} == {"fresh"}
    assert {r.judge for r in go(tmp_path / "run", judges=judges[:1]).results} == {"taught"}


def test_policies_are_compared_with_the_plain_model_prompt_by_prompt(tmp_path):
    refusing = Scripted("j", "complied")
    refusing.judge = lambda ts: (  # type: ignore[method-assign]
        Verdict(id=t.id, policy=t.policy, set=t.set, judge="j", outcome="refused" if t.policy == "a" else "complied")
        for t in ts
    )
    found = go(tmp_path / "run", policies=[NONE, *POLICIES], judges=[refusing])
    [a, b] = found.comparisons["harmful"]
    assert (a.policy, a.n, a.points, a.only_policy, a.only_baseline) == ("a", 4, 100, 4, 0)
    assert (b.policy, b.points, b.p) == ("b", 0, 1)


def test_a_run_takes_more_policies_and_keeps_what_it_has(tmp_path, monkeypatch):
    go(tmp_path / "run", policies=POLICIES[:1])
    made = []
    real = runner.generate
    monkeypatch.setattr(
        runner,
        "generate",
        lambda lm, saes, talk, p, *more, **how: made.extend(p) or real(lm, saes, talk, p, *more, **how),
    )
    go(tmp_path / "run", policies=POLICIES[1:])
    assert {p.name for p in made} == {"b"}
    assert {t.policy for t in read_transcripts(tmp_path / "run" / TRANSCRIPTS)} == {"a", "b"}


def test_what_a_shut_gate_leaves_alone_is_not_generated_again(tmp_path, monkeypatch):
    made = []
    real = runner.generate

    def counted(lm, saes, talk, policies, *more, **how):
        made.append(len(policies))
        return real(lm, saes, talk, policies, *more, **how)

    monkeypatch.setattr(runner, "generate", counted)
    lm, shut = tiny.lm("llama", torch.float64), tiny.policy(name="b", threshold=1e9)
    evaluate(lm, tiny.saes(), [NONE, shut], [PROMPTS], [rules], SETTINGS, tmp_path)
    assert made == [12, 0]
    rows = {(t.policy, t.id): t for t in read_transcripts(tmp_path / TRANSCRIPTS)}
    assert all(rows["b", r.id].reply == rows["none", r.id].reply for r in PROMPTS.rows)
    assert all(rows["b", r.id].gate is not None and not rows["b", r.id].open for r in PROMPTS.rows)


def test_rows_are_counted_by_set_label_and_kind(tmp_path):
    results = go(tmp_path / "run").results
    assert {(r.policy, r.label, r.kind, r.n) for r in results} == {
        (p, label, kind, n) for p in "ab" for label, kind, n in (("harmful", "harmful", 4), ("benign", "plain", 8))
    }
    assert all(sum(r.outcomes.values()) == r.n for r in results)
    assert {r.opened for r in results if r.policy == "b"} == {0}


@pytest.mark.parametrize("n", [1, 5, 12, 40])
def test_an_even_sample_keeps_order_and_reaches_both_ends(n):
    picked = [r.id for r in PROMPTS.sample(n).rows]
    assert len(picked) == min(n, 12)
    assert picked == sorted(picked, key=lambda i: int(i[1:]))
    assert picked[0] == "r0"


def test_ids_are_made_up_and_other_columns_kept(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "label": "harmful", "note": 3}\n')
    row = PromptSet.load(tmp_path / "mine.jsonl").rows[0]
    assert row.id == "mine-1"
    assert row.extra == {"note": 3}
