"""The evaluation run: resumption, judging anew, even samples, and rates that are counted right."""

import pytest
import torch

from demur.evaluation import runner
from demur.evaluation.runner import TRANSCRIPTS, EvaluationSettings, evaluate, read_results, read_transcripts
from demur.records import Prompt, PromptSet
from demur.steering.policies import NONE
from tests import tiny

PROMPTS = PromptSet(
    name="ours",
    rows=tuple(
        Prompt(id=f"r{i}", prompt=f"Tell me about {i}", label="harmful" if i % 3 == 0 else "benign", kind=k)
        for i, k in enumerate(["harmful", "plain", "plain"] * 4)
    ),
)
SETTINGS = EvaluationSettings(max_new_tokens=4, batch=3)


def go(folder, prompts=PROMPTS):
    folder.mkdir(exist_ok=True)
    lm = tiny.lm("llama", torch.float64)
    policies = [tiny.policy(name="a"), tiny.policy(name="b", threshold=1e9)]
    return evaluate(lm, tiny.saes(), policies, [prompts], SETTINGS, folder)


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
    assert all(r.refused.rate == 1 for r in again)
    assert read_results(tmp_path / "run") == again


def test_what_a_shut_gate_leaves_alone_is_not_generated_again(tmp_path, monkeypatch):
    made = []
    real = runner.generate

    def counted(lm, saes, talk, policies, *more):
        made.append(len(policies))
        return real(lm, saes, talk, policies, *more)

    monkeypatch.setattr(runner, "generate", counted)
    lm, shut = tiny.lm("llama", torch.float64), tiny.policy(name="b", threshold=1e9)
    evaluate(lm, tiny.saes(), [NONE, shut], [PROMPTS], SETTINGS, tmp_path)
    assert made == [12, 0]
    rows = {(t.policy, t.id): t for t in read_transcripts(tmp_path / TRANSCRIPTS)}
    assert all(rows["b", r.id].reply == rows["none", r.id].reply for r in PROMPTS.rows)
    assert all(rows["b", r.id].gate is not None and not rows["b", r.id].open for r in PROMPTS.rows)


def test_rows_are_counted_by_set_label_and_kind(tmp_path):
    results = go(tmp_path / "run")
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
