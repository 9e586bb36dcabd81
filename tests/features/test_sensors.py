"""Sensors and contrast on data whose answer is known."""

import torch

from demur.features.contrast import DENSE, read_replies, separation
from demur.features.reading import read_prompts, read_prompts_by
from demur.features.sensors import fit
from demur.models.chat import tokens_and_roles
from tests import tiny


def test_the_features_that_tell_are_kept_and_the_model_reads_harm():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, 200, generator=generator)
    harmful = [bool(v) for v in (x[:, 3] + x[:, 50] - x[:, 120] > 0.5)]
    found = fit(x, harmful, ["a"] * 400, count=3)
    assert sorted(found.features) == [3, 50, 120]
    score = x[:, found.features] @ torch.tensor(found.weights) + found.bias
    assert sum((s > 0) == y for s, y in zip(score.tolist(), harmful, strict=True)) > 370
    assert min(w for f, w in zip(found.features, found.weights, strict=True) if f != 120) > 0
    assert all(area > 0.6 for f, area in zip(found.features, found.areas, strict=True) if f != 120)


def test_a_large_source_does_not_drown_a_small_one():
    """Feature 0 tells the large source's labels, feature 1 the small one's; both must be kept."""
    generator = torch.Generator().manual_seed(0)
    large, small = 2000, 100
    x = 0.1 * torch.rand(large + small, 40, generator=generator)
    harmful = [i % 2 == 0 for i in range(large + small)]
    for i, bad in enumerate(harmful):
        x[i, 0 if i < large else 1] += float(bad)
    groups = ["large"] * large + ["small"] * small
    assert set(fit(x, harmful, groups, count=2).features) == {0, 1}


def test_read_prompts_is_the_naive_loop():
    lm, sae = tiny.lm(), tiny.sae()
    talk = tiny.said("Hi", "What is a boat?", "A rather longer question")
    found = read_prompts(lm, sae, talk, ["max", "mean", "last"], batch=2)
    for i, conversation in enumerate(talk):
        ids, roles = tokens_and_roles(lm, conversation)
        hidden = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
        seen = [t for t in range(len(ids)) if roles[t] == 3 or t == len(ids) - 1]
        f = sae.encode(hidden[seen]).float()
        for name, wanted in (("max", f.amax(0)), ("mean", f.mean(0)), ("last", f[-1])):
            torch.testing.assert_close(found[name][i], wanted, atol=1e-5, rtol=1e-5)


def test_several_saes_read_together_as_alone():
    lm, saes = tiny.lm(), [tiny.sae(layer=0), tiny.sae(), tiny.sae(d_sae=32)]
    talk = tiny.said("Hi", "What is a boat?", "A rather longer question")
    together = read_prompts_by(lm, saes, talk, ["max"], batch=2, residual=["mean"])
    for sae, found in zip(saes, together, strict=True):
        alone = read_prompts(lm, sae, talk, ["max"], residual=["mean"])
        for name, values in alone.items():
            torch.testing.assert_close(found[name], values)


def test_reply_statistics_are_the_naive_ones():
    lm, sae = tiny.lm(), tiny.sae()
    talk, replies = tiny.said("Hi", "Why is it so?"), [[70, 71, 72, 73], [90, 91]]
    found = read_replies(lm, sae, talk, replies)
    rows = []
    for conversation, reply in zip(talk, replies, strict=True):
        ids = tokens_and_roles(lm, conversation)[0]
        hidden = lm.model(input_ids=torch.tensor([ids + reply]), output_hidden_states=True).hidden_states[2][0]
        rows.append(sae.encode(hidden[len(ids) - 1 : -1]).float())
    every = torch.cat(rows)
    torch.testing.assert_close(found.mean, every.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.share, (every > 0).float().mean(0))
    torch.testing.assert_close(found.twice, torch.stack([((r > 0).sum(0) >= 2).float() for r in rows]).mean(0))
    dense = found.share > DENSE
    assert dense.any()
    assert (separation(found, found)[dense] == 0).all()
