"""Candidates: what is dropped, how orders are merged, and that the planted features come out on top."""

import pytest
import torch

from demur.activations.harvest import read
from demur.features.branches import Branches
from demur.features.candidates import (
    ANYWAY,
    candidates,
    fused,
    gather,
    left_out,
    merged,
    on_ordinary_text,
    refusals_won,
)
from demur.features.contrast import ReplyStatistics
from demur.features.effect import Bench
from demur.features.replies import both_replies
from demur.features.settings import FindSettings
from demur.features.together import find_together
from demur.models.chat import Role, tokens_and_roles
from tests import tiny
from tests.planted import by_hand
from tests.planted.by_hand import AGAINST, D_SAE, DENSE, HALF, OTHER_HALF, TEMPLATE, TWIN, WRITES

SETTINGS = FindSettings(
    openings=("N",),
    actuators=6,
    candidates=10,
    sure=3,
    shortlist=6,
    attributed=6,
    paired=24,
    scored=4,
    singly=4,
    tried=8,
)


def test_fusion_is_the_sum_of_reciprocal_ranks():
    rankings = {"a": {5: 9.0, 1: 2.0}, "b": {1: 0.4, 7: 0.3, 5: 0.1}}
    assert fused(rankings) == pytest.approx({1: 1 / 62 + 1 / 61, 5: 1 / 61 + 1 / 63, 7: 1 / 62})
    assert list(fused(rankings)) == [1, 5, 7]


def test_each_signals_best_are_in_whatever_the_others_say():
    crowd = {f: 1.0 for f in range(20)}
    rankings = {"a": crowd, "b": crowd, "alone": {99: 1.0, 98: 0.5}}
    assert 99 not in merged(rankings, 5, 0)
    found = merged(rankings, 5, 1)
    assert 99 in found
    assert 98 not in found
    assert len(found) == 5
    assert len(merged(rankings, 1, 3)) == 5


def test_ordinary_text_is_read_as_the_naive_loop_does():
    bench, talk = Bench(tiny.lm(), tiny.sae()), tiny.said("Hi", "What is a boat?", "tea")
    words, template = on_ordinary_text(bench, talk)
    on_words, behind = [], {}
    for conversation in talk:
        ids, roles = tokens_and_roles(bench.lm, conversation)
        hidden = read(bench.lm, ["1.resid_post"], torch.tensor([ids]))["1.resid_post"][0]
        on = (bench.sae.encode(hidden) > 0).float()
        last = max(t for t, role in enumerate(roles) if role == Role.USER)
        for t, (token, role) in enumerate(zip(ids, roles, strict=True)):
            if role == Role.USER:
                on_words.append(on[t])
            elif t > last:
                behind.setdefault(token, []).append(on[t])
    torch.testing.assert_close(words, torch.stack(on_words).mean(0))
    torch.testing.assert_close(template, torch.stack([torch.stack(rows).mean(0) for rows in behind.values()]).amax(0))


def statistics(**columns: torch.Tensor) -> ReplyStatistics:
    zeros = {name: torch.zeros(4) for name in ("mean", "variance", "share", "twice", "level", "stream")}
    return ReplyStatistics(**zeros | {"variance": torch.ones(4)} | columns)


def test_what_fires_in_any_reply_alike_is_left_out():
    refusing = statistics(mean=torch.tensor([1.0, 1.0, 3.0, 1.0]), twice=torch.tensor([0.9, 0.9, 0.9, ANYWAY]))
    complying = statistics(mean=torch.tensor([1.0, 1.0, 1.0, 1.0]), twice=torch.tensor([0.9, 0.2, 0.9, 0.9]))
    found = left_out(torch.zeros(4), torch.zeros(4), refusing, complying, SETTINGS)
    assert found["any reply"].tolist() == [True, False, False, False]
    assert set(left_out(torch.zeros(4), torch.zeros(4), refusing, None, SETTINGS)) == {"dense", "template"}


def test_a_reason_is_given_once():
    words, template = torch.tensor([0.2, 0.0, 0.05, 0.6]), torch.tensor([1.0, 1.0, 0.4, 0.5])
    found = left_out(words, template, statistics(), None, SETTINGS)
    assert found["dense"].tolist() == [True, False, False, True]
    assert found["template"].tolist() == [False, True, False, False]
    lenient = left_out(words, template, statistics(), None, FindSettings(dense=1, template=1))
    assert not torch.stack(list(lenient.values())).any()


@pytest.fixture(scope="module")
def found():
    """The by-hand model's bench, what the signals say, and the candidates."""
    bench = by_hand.bench()
    branches, train = Branches(bench), by_hand.prompts(24)
    harmful, benign = train.where(label="harmful").rows, train.where(label="benign").rows
    replies = both_replies(bench, harmful[:12], 0)
    talk = [p.conversation for p in benign]
    signals = gather(bench, branches, replies, harmful, talk, SETTINGS)
    return bench, signals, candidates(bench, branches, signals, by_hand.prompts(8, seed=1), SETTINGS)


def test_dense_features_and_the_templates_are_dropped_first(found):
    _, signals, listed = found
    assert signals.dropped["dense"] >= 1
    assert signals.dropped["template"] >= 1
    named = {f for ranking in signals.scores.values() for f in ranking}
    assert not {DENSE, TEMPLATE} & (named | {c.id for c in listed})


def test_every_signal_speaks_for_the_planted_feature(found):
    _, signals, _ = found
    assert set(signals.scores) == {"descent", "rehearsal", "attribution", "contrast", "cosine", "paired"}
    for name, ranking in signals.scores.items():
        assert {WRITES, TWIN} & set(list(ranking)[:2]), name
        assert AGAINST not in ranking, name
    assert all(signals.levels[f] >= 0.1 * signals.norm for f in signals.levels)


def test_candidates_have_the_signals_scores_and_what_they_do_alone(found):
    _bench, signals, listed = found
    assert listed[0].id in (WRITES, TWIN)
    first = listed[0].scores
    assert {"descent", "attribution", "cosine", "output", "rank", "log_odds_gain", "harmful_refused"} <= set(first)
    assert first["attribution"] == signals.scores["attribution"][listed[0].id]
    assert (first["harmful_refused"], first["log_odds_gain"] > 1) == (1, True)
    ranks = [c.scores["rank"] for c in listed]
    assert sorted(ranks) == list(range(1, len(listed) + 1))
    worth = [refusals_won(c) for c in listed]
    assert worth == sorted(worth, reverse=True)
    assert sum("harmful_refused" in c.scores for c in listed) == min(SETTINGS.shortlist, len(listed))
    assert len(listed) <= D_SAE


def test_the_whole_finds_what_was_planted_and_goes_on_from_its_folder(found, tmp_path, monkeypatch):
    bench, _, _ = found
    train, validation = by_hand.prompts(24), by_hand.prompts(8, seed=1)
    harmful, benign = train.where(label="harmful").rows, train.where(label="benign").rows
    replies = both_replies(bench, harmful[:12], 0)
    monkeypatch.setattr("demur.features.optimise.ROUNDS", 2)
    monkeypatch.setattr("demur.features.optimise.ROUND_PROMPTS", 8)
    made = find_together(bench, replies, harmful, benign, validation, SETTINGS, tmp_path)
    ids = {f.id for f in made.actuators}
    assert {WRITES, TWIN} & ids or {HALF, OTHER_HALF} <= ids
    assert not {DENSE, TEMPLATE, AGAINST} & ids
    assert len(ids) <= 2
    assert "1 dense, 1 template" in made.how
    assert {r.feature for r in made.pruned if r.gone} | ids == {r.feature for r in made.pruned} | ids
    stages = sorted(path.name for path in tmp_path.glob("*.json"))
    assert stages == ["amounts.json", "candidates.json", "links.json", "pruned.json", "signals.json"]
    (tmp_path / "links.json").unlink()
    for name in ("gather", "candidates", "rehearse", "prune"):
        monkeypatch.setattr(f"demur.features.together.{name}", None)
    assert find_together(bench, replies, harmful, benign, validation, SETTINGS, tmp_path) == made
