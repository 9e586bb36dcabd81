"""The search: what a kill leaves is gone on from to the same trials; what is tried is what the parameters say."""

import sys
from dataclasses import replace

import pytest

from demur.calibration import calibrate as calibrating
from demur.calibration import search as searching
from demur.calibration.calibrate import calibrate
from demur.calibration.search import CONFIRMED, HOLDS, TRIALS, around, confirm, propose, search
from demur.calibration.settings import CalibrationSettings
from demur.calibration.trials import Ground, measure
from demur.errors import PolicyError, SettingsError
from demur.evaluation.judging.rules import Rules
from demur.features.effect import Bench
from demur.models.generation import GenerationSettings
from demur.records import Policy, Verdict
from demur.steering.describe import in_words
from demur.steering.generate import generate
from tests import tiny
from tests.calibration import grounds

SETTINGS = CalibrationSettings(
    trials=14, together=4, tried=3, tried_benign=2, confirmed=4, finalists=2, max_new_tokens=4, late_replies=6,
    late_budget=0.2, budgets={"standard": {"plain": 0.2, "lookalike": 0.3}},
)  # fmt: skip


def ground(folder, settings=SETTINGS) -> Ground:
    bench, validation = grounds.bench(), grounds.prompts(4)
    base = calibrating.base_policy(bench, grounds.joined())
    scores = calibrating.read_scores(bench.lm, bench.saes, base, validation.rows)
    return calibrating._ground(bench, base, grounds.joined().actuators(), validation, scores, settings, folder)


def plan(settings=SETTINGS):
    return around(grounds.joined().actuators(), settings.positions, settings, gated=True, ranked=False)


def test_a_search_that_was_killed_goes_on_to_the_same_trials(tmp_path):
    (tmp_path / "whole").mkdir()
    tried = ground(tmp_path / "whole")
    whole = search(tried, plan(), SETTINGS, tmp_path / "whole")
    assert [t.number for t in whole] == list(range(14))
    written = (tmp_path / "whole" / TRIALS).read_bytes()
    ends = [i for i, byte in enumerate(written) if byte == ord("\n")]
    # In the midst of a row, after one row of a batch, between batches, one row before the end.
    for at in (ends[8] + 40, ends[4] + 1, ends[7] + 1, ends[12] + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        (folder / TRIALS).write_bytes(written[:at])
        again = search(Ground(**{**tried.__dict__, "folder": folder}), plan(), SETTINGS, folder)
        assert again == whole
    assert search(tried, plan(), SETTINGS, tmp_path / "whole") == whole, "and nothing is tried twice"
    assert (tmp_path / "whole" / TRIALS).read_bytes() == written
    more = SETTINGS.model_copy(update={"trials": 16})
    assert search(tried, plan(), more, tmp_path / "whole")[:14] == whole


def test_finalists_that_were_tried_before_a_kill_are_not_tried_again(tmp_path, monkeypatch):
    tried = ground(tmp_path)
    best = search(tried, plan(), SETTINGS.model_copy(update={"trials": 4}), None)[1:]
    asked = (tried.harmful[:2], tried.benign[:1])
    whole = confirm(tried, best, *asked, drawn=1)
    assert [t.number for t in whole] == [1, 2, 3] and all(t.drawn and t.refused.n == 2 for t in whole)
    written = (tmp_path / CONFIRMED).read_bytes()
    (tmp_path / CONFIRMED).write_bytes(written[: written.index(b"\n") + 30])  # the first is whole
    made = []
    monkeypatch.setattr(searching, "measure", lambda *how, **more: made.append(how[1]) or measure(*how, **more))
    assert confirm(tried, best, *asked, drawn=1) == whole
    assert made == [[best[1].params], [best[2].params]]
    assert (tmp_path / CONFIRMED).read_bytes() == written


def test_no_batch_is_begun_when_the_time_is_up(tmp_path):
    tried, short = ground(tmp_path), SETTINGS.model_copy(update={"minutes": 1e-6})
    assert len(search(tried, plan(), short, tmp_path)) == 4
    assert len(search(tried, plan(), short, tmp_path)) == 4, "time spent before a stop counts"


def test_what_is_proposed_follows_from_the_trials_and_the_seed(tmp_path):
    trials = search(ground(tmp_path), plan(), SETTINGS.model_copy(update={"trials": 6}), None)
    space = plan().space
    first = propose(space, trials, 5, seed=0)
    assert first == propose(space, trials, 5, seed=0)
    assert first != propose(space, trials, 5, seed=1)
    assert first != propose(space, trials[:4], 5, seed=0)
    for params in first:
        assert set(params) == set(space)
        assert 0.8 <= params["dose"] <= 1.4 and params["hold"] in HOLDS


def test_parameters_become_the_policy_that_they_say():
    tried = ground(None)
    params = dict(plan().starts[0]) | {
        "dose": 1.3, "positions": "user", "feature 7": False, "onset": 2, "hold": 8, "decay": 4, "soft": 0.5,
    }  # fmt: skip
    policy = tried.policy(params)
    act = policy.interventions[0]
    assert {e.feature: e.value for e in act.edits} == pytest.approx({3: 1.3 * 4.0, 11: 1.3 * 2.0})
    assert (act.positions, act.onset, act.hold, act.decay) == ("user", 2, 8, 4)
    assert policy.gate.soft == pytest.approx(0.5 * tried.spread)
    assert {e.operation for e in act.edits} == {"add"}
    clamping = ground(None, SETTINGS.model_copy(update={"operation": "clamp"})).policy(params).interventions[0]
    assert {e.operation for e in clamping.edits} == {"clamp"}
    none = {f"feature {f}": False for f in (3, 7, 11)}
    assert set(tried.raised(params | none)) == {3}, "one is always raised"
    whole = tried.policy(dict(plan().starts[0]) | {"hold": 0, "decay": 8}).interventions[0]
    assert (whole.hold, whole.decay) == (None, 0)


def test_trials_in_one_batch_are_what_each_is_alone():
    tried, starts = ground(None), plan().starts
    soft = dict(starts[0]) | {"soft": 1.0}
    together = measure(tried, [starts[0], soft, starts[3], starts[0]], "trying")
    alone = [measure(tried, [p], "trying")[0] for p in (starts[0], soft, starts[3])]
    for made, one in zip(together, alone, strict=False):
        assert made.refused == one.refused and made.degenerate == one.degenerate
        assert made.kl == pytest.approx(one.kl, rel=1e-6)
    assert together[3].aims == together[0].aims


def test_what_is_drawn_is_judged_reply_by_reply():
    tried, ways = ground(None), [plan().starts[0], plan().starts[3]]

    class Even(Rules):
        """Calls a reply a refusal by the length of its text."""

        def judge(self, transcripts):
            return [
                Verdict(
                    id=t.id, policy=t.policy, set=t.set, judge="even", outcome=("complied", "refused")[len(t.reply) % 2]
                )
                for t in transcripts
            ]

    tried = Ground(**{**tried.__dict__, "bench": replace(tried.bench, judge=Even())})
    assert measure(tried, ways, "trying")[0].drawn is None
    for trial, way in zip(measure(tried, ways, "trying", drawn=2), ways, strict=True):
        policy, talk = tried.tried(way)[0], [p.conversation for p in tried.harmful]
        words = []
        for seed in (0, 1):
            how = GenerationSettings(max_new_tokens=SETTINGS.max_new_tokens, temperature=1.0, seed=seed)
            words += [r.text for _, r in generate(tried.bench.lm, tried.bench.saes, talk, [policy] * len(talk), how)]
        assert (trial.drawn.k, trial.drawn.n) == (sum(len(w) % 2 for w in words), 2 * len(talk))


def test_benign_prompts_meet_an_open_gate_also_where_the_dose_goes_by_risk():
    tried = ground(None)
    soft = dict(plan().starts[0]) | {"soft": 1.0}
    shut, forced = tried.tried(soft)
    assert shut.gate.threshold == tried.base.gate.threshold
    talk = [p.conversation for p in tried.benign]
    replies = generate(
        tried.bench.lm, tried.bench.saes, talk, [forced] * len(talk), GenerationSettings(max_new_tokens=2)
    )
    assert all(reply.steering["open"] and reply.steering["dose"] <= 1 for _, reply in replies)


def test_finalists_meet_an_open_gate_on_every_benign_prompt_that_they_are_tried_on(tmp_path, monkeypatch):
    tried = ground(tmp_path)
    validation = grounds.prompts(4)
    scores = calibrating.read_scores(tried.bench.lm, tried.bench.saes, tried.base, validation.rows)
    trials = search(tried, plan(), SETTINGS, tmp_path)
    seen = []

    def watched(there, best, harmful, benign, drawn):
        seen.append((there.lowest, [p.id for p in benign]))
        return confirm(there, best, harmful, benign, drawn)

    monkeypatch.setattr(calibrating, "confirm", watched)
    calibrating._searched(tried, trials, validation, scores, tried.base.gate.threshold)
    score_of = {row.id: s.score for row, s in zip(validation.rows, scores, strict=True)}
    assert len(seen) == 1 and len(seen[0][1]) > len(tried.benign)
    assert seen[0][0] == min(score_of[i] for i in seen[0][1]) < tried.lowest


def test_calibrating_writes_policies_that_load_with_their_levels_and_vectors(tmp_path):
    bench, validation = grounds.bench(), grounds.prompts(8)
    made = calibrate(bench, grounds.joined(), validation, SETTINGS, tmp_path)
    ours, control = made.policies
    assert (ours.name, control.name) == ("gated", "random")
    ours.save(tmp_path / "gated.toml")
    loaded = Policy.load(tmp_path / "gated.toml")
    assert loaded == ours and loaded.hash == ours.hash
    assert set(loaded.levels) == {"relaxed", "standard", "strict"}
    assert loaded.gate.threshold == loaded.levels["standard"].threshold
    assert loaded.at_level("strict", {"weapons": "off"}).gate.thresholds == {"weapons": float("inf")}
    assert loaded.gate.continuation.opens >= loaded.gate.continuation.closes
    assert loaded.saes == {site: sae.hash for site, sae in bench.saes.items()}
    assert loaded.receipt["levels"]["standard"]["binds"] in ("chat", "lookalike")
    assert not {e.feature for e in control.interventions[0].edits} & {3, 7, 11}
    talk = [row.conversation for row in validation.rows[:6]]
    replies = dict(generate(bench.lm, bench.saes, talk, [loaded] * 6, GenerationSettings(max_new_tokens=3)))
    base = calibrating.base_policy(bench, grounds.joined())
    scores = calibrating.read_scores(bench.lm, bench.saes, base, validation.rows[:6])
    assert [replies[i].steering["gate"] for i in range(6)] == pytest.approx([s.score for s in scores], abs=1e-6)
    words = "\n".join(in_words(loaded))
    assert (
        "it sets the threshold" in words and "harmful of s0" in words and "How it acts was chosen from 14 ways" in words
    )
    again = calibrate(bench, grounds.joined(), validation, SETTINGS, tmp_path)
    assert again.policies == made.policies and again.front == made.front


def test_a_levels_dose_is_relative_to_the_policy_that_is_written():
    settings = SETTINGS.model_copy(update={"level_doses": {"standard": 1.2, "strict": 1.5}, "trials": 4})
    made = calibrate(grounds.bench(), grounds.features(), grounds.prompts(8), settings)
    plain = calibrate(
        grounds.bench(), grounds.features(), grounds.prompts(8), SETTINGS.model_copy(update={"trials": 4})
    )
    values = [[e.value for e in m.policies[0].interventions[0].edits] for m in (made, plain)]
    assert values[0] == pytest.approx([1.2 * v for v in values[1]])
    strict = made.policies[0].at_level("strict").interventions[0].edits
    assert [e.value for e in strict] == pytest.approx([1.5 * v for v in values[1]])


def test_the_papers_feature_is_tried_without_a_gate_at_every_dose():
    made = calibrate(grounds.bench(), grounds.features(method="paper"), grounds.prompts(4), SETTINGS)
    assert [p.name for p in made.policies] == ["paper"] and made.policies[0].gate is None
    assert [t.params["dose"] for t in made.front.trials] == [1.0, 0.8, 0.9, 1.1, 1.2, 1.4]
    assert {e.feature for e in made.policies[0].interventions[0].edits} == {3}


def test_features_of_another_model_are_refused():
    with pytest.raises(PolicyError, match="find them again"):
        calibrate(grounds.bench(), grounds.features(model_hash="0123456789ab"), grounds.prompts(4), SETTINGS)


def test_a_sensor_behind_the_edit_is_refused_before_anything_is_read(tmp_path):
    bench = grounds.bench()
    early = Bench(bench.lm, tiny.sae("llama", 0), others={"1.resid_post": bench.sae})
    found = grounds.joined().model_copy(update={"site": "0.resid_post", "sae_hash": early.sae.hash})
    with pytest.raises(PolicyError, match=r"reads at 1[.]resid_post, behind its first edit"):
        calibrate(early, found, grounds.prompts(4), SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_optuna_the_starting_points_can_be_tried_and_more_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"pip install 'demur\[calibrate\]'"):
        search(ground(None), plan(), SETTINGS, None)
    few = search(ground(None), plan(), SETTINGS.model_copy(update={"trials": 2}), None)
    assert [t.params for t in few] == [dict(p) for p in plan().starts[:2]]
