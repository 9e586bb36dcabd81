"""What reads harm off a reply: found on the plain model's replies, and what the gate then sees token by token."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from demur.activations.harvest import read
from demur.evaluation.judging.judges import verdict
from demur.features.effect import Bench, answers
from demur.features.find import find
from demur.features.late import read_late
from demur.features.settings import FindSettings
from demur.models.chat import tokens_and_roles
from demur.records import Gate, Outcome, Policy, Transcript, Verdict
from demur.steering.generate import decide
from demur.steering.policies import NONE
from tests import tiny
from tests.features.test_keep import before, prompts


class Same:
    """A judge to whom all replies are the same."""

    name, trained_on, keeps = "same", frozenset[str](), False

    def __init__(self, outcome: Outcome) -> None:
        self.outcome: Outcome = outcome

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        return (verdict(self.name, t, self.outcome, "") for t in transcripts)


def bench(outcome: Outcome = "complied") -> Bench:
    return Bench(tiny.lm(), tiny.sae(), judge=Same(outcome))


def test_a_replys_mean_score_on_the_gate_is_that_of_the_model_fitted_to_means():
    made, rows = bench(), prompts("train", 20).rows
    late = read_late(made, rows, FindSettings(sensors=6))
    assert late and late.sensor.kind == "features" and len(late.sensor.features) <= 6
    replies = answers(made, [(NONE, row) for row in rows], 64)
    ids = [made.lm.tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in replies]
    each = late.model_copy(update={"opens": 1e30, "closes": 1e30, "tau": 1.0})
    about = {"name": "p", "model": "tiny", "model_hash": made.lm.hash, "saes": {made.sae.config.site: made.sae.hash}}
    policy = Policy(**about, gate=Gate(sensor=late.sensor, threshold=1e30, continuation=each))
    seen = decide(made.lm, made.saes, [row.conversation for row in rows], policy, replies=ids)
    scores = np.array([np.mean(s["trace"]) for s in seen])

    talks = [row.conversation for row in rows]
    for talk, said, score in zip(talks, ids, scores, strict=True):
        prompt = tokens_and_roles(made.lm, talk)[0]
        stream = read(made.lm, [late.sensor.site], torch.tensor([prompt + said]))[late.sensor.site][0, len(prompt) :]
        means = made.sae.encode(stream)[:, list(late.sensor.features)].mean(0)
        naive = float(means @ means.new_tensor(late.sensor.weights)) + late.sensor.bias
        assert score == pytest.approx(naive, abs=1e-3)  # a trace keeps four digits
    harmful = np.array([row.label == "harmful" for row in rows])
    assert scores[harmful].mean() > scores[~harmful].mean()


def test_none_where_the_model_complies_with_nothing():
    assert read_late(bench("refused"), prompts("train", 10).rows, FindSettings(sensors=6)) is None


@pytest.mark.parametrize("asked", [0, 8])
def test_find_brings_it_where_it_is_asked_for(asked, tmp_path):
    made = bench()
    settings = FindSettings(method="contrast", sensors=4, dosed=2, each_kind=4, late_replies=asked)
    found = find(made, prompts("train", 20), prompts("validation", 4), settings, "s", tmp_path, kept=before(made))
    assert (found.continuation is not None) is bool(asked)
    assert (tmp_path / "late.json").is_file() is bool(asked)
