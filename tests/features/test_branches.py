"""Trials in one row against a row for each, and against policies steered as everybody else's."""

import pytest
import torch

from demur.features.branches import Branches, odds, unchanged
from demur.features.effect import Bench, refusal_log_odds
from demur.steering.policies import NONE
from demur.steering.score import next_log_probs
from tests import tiny

TRIALS = [{}, {3: 4.0}, {7: 2.0, 3: 1.0}, dict.fromkeys(range(64), 0.0)]
TALK = tiny.said("Hi", "What is a boat?")


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_log_odds_are_those_of_policies_that_clamp(architecture):
    bench = Bench(tiny.lm(architecture), tiny.sae(architecture))
    policies = [bench.raising(values, "reply") if values else NONE for values in TRIALS]
    beginnings = [[40, 41, 9], [50], [41, 9]]
    branches = Branches(bench)
    found = branches.refusal_log_odds(TRIALS, TALK, beginnings)
    assert branches.packs
    assert found.shape == (4, 2)
    assert found.mean(1).tolist() == pytest.approx(refusal_log_odds(bench, policies, TALK, beginnings), abs=1e-5)
    assert len({round(x, 4) for x in found.mean(1).tolist()}) == 4


def test_a_model_that_takes_no_such_mask_gets_a_row_for_each():
    bench = Bench(tiny.lm(), tiny.sae())
    together, apart = Branches(bench), Branches(bench)
    apart.packs = False
    beginnings = [[40, 41, 9], [50]]
    found = [b.refusal_log_odds(TRIALS, TALK, beginnings) for b in (together, apart)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_many_trials_go_in_several_rows(monkeypatch):
    bench = Bench(tiny.lm(), tiny.sae())
    replies = [[40, 41], [50], [9, 8, 7], [6]]
    whole = list(Branches(bench).log_probs(TALK[0], replies, unchanged))
    monkeypatch.setattr("demur.features.branches.COLUMNS", {"cpu": 40})
    parts = list(Branches(bench).log_probs(TALK[0], replies, unchanged))
    assert [len(p) for p in parts] == [2, 1, 3, 1]
    torch.testing.assert_close(torch.cat(parts), torch.cat(whole), atol=1e-5, rtol=1e-5)


def test_first_words_are_those_of_the_policies():
    bench = Bench(tiny.lm(), tiny.sae())
    found = Branches(bench).first_words(TRIALS, TALK)
    for values, row in zip(TRIALS, found, strict=True):
        policy = bench.raising(values, "reply") if values else NONE
        naive = next_log_probs(bench.lm, bench.saes, TALK, [policy] * 2).exp().mean(0)
        torch.testing.assert_close(row, naive, atol=1e-6, rtol=1e-5)


def test_odds_add_up_beginnings():
    p = torch.tensor([0.25, 0.35])
    assert float(odds(p.log())) == pytest.approx(float(torch.logit(torch.tensor(0.6))), abs=1e-5)
