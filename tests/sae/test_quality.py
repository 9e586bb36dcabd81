"""Figures of an SAE on text, against the plainest way to compute each."""

import numpy as np
import torch
from torch.nn import functional as F

from demur.activations.stream import read_rows
from demur.data.corpus import Sequences
from demur.models.hooks import at_blocks
from demur.sae.quality import DENSE, Tally, measure, nearest, tally
from demur.sae.sae import SAE
from tests import tiny

DRAW = np.random.default_rng(3)
ROWS = [DRAW.integers(4, 250, n).tolist() for n in (5, 17, 9, 30, 12, 8, 21, 14, 2, 26)]
TEXT = Sequences.of(ROWS)


def naive() -> dict[str, float]:
    """One sequence, one token at a time."""
    lm, sae = tiny.lm(), tiny.sae()
    x = read_rows(lm, [sae.config.site], [np.array(r) for r in ROWS])[:, 0]
    f = sae.encode(x)
    back = sae.decode(f)
    sums = {"plain": 0.0, "spliced": 0.0, "zeroed": 0.0, "kl": 0.0}
    n = 0
    for row in ROWS:
        ids = torch.tensor([row])
        scores = {}
        for how in ("plain", "spliced", "zeroed"):

            def splice(hidden, how=how):
                out = hidden.clone()
                for t in range(1, hidden.shape[1]):
                    here = hidden[0, t : t + 1]
                    out[0, t] = {"plain": here, "spliced": sae.decode(sae.encode(here)), "zeroed": 0 * here}[how][0]
                return out

            with at_blocks({lm.block(sae.config.site): splice}):
                scores[how] = lm.logits(ids)[0].log_softmax(1)
        for t in range(len(row) - 1):
            for how, log_p in scores.items():
                sums[how] -= float(log_p[t, row[t + 1]])
            p, q = scores["plain"][t], scores["spliced"][t]
            sums["kl"] += float((p.exp() * (p - q)).sum())
            n += 1
    return {name: value / n for name, value in sums.items()} | {
        "fvu": float((x - back).pow(2).sum() / (x - x.mean(0)).pow(2).sum()),
        "l0": float((f > 0).sum(1).double().mean()),
        "dead": float(((f > 0).sum(0) == 0).double().mean()),
        "dense": float(((f > 0).double().mean(0) > DENSE).double().mean()),
    }


def test_every_figure_is_the_naive_one():
    found, plain = measure(tiny.lm(), tiny.sae(), TEXT, batch=3), naive()
    for name in ("fvu", "l0", "dead", "dense"):
        assert abs(getattr(found, name) - plain[name]) < 1e-6, name
    for name, theirs in (("plain", "plain"), ("spliced", "spliced"), ("zeroed", "zeroed")):
        assert abs(getattr(found, f"loss_{name}") - plain[theirs]) < 1e-5
    assert abs(found.kl_spliced - plain["kl"]) < 1e-5
    assert found.kl_spliced > 0
    recovered = (plain["zeroed"] - plain["spliced"]) / (plain["zeroed"] - plain["plain"])
    assert abs(found.loss_recovered - recovered) < 1e-4
    assert (found.tokens, found.predicted) == (sum(len(r) - 1 for r in ROWS),) * 2


def test_two_texts_added_are_both_as_one():
    halves = tally(tiny.lm(), tiny.sae(), dict(zip("ab", TEXT.split(4), strict=True)), batch=3)
    both, whole = (halves["a"] + halves["b"]).quality, measure(tiny.lm(), tiny.sae(), TEXT, batch=3)
    for name, value in whole.model_dump().items():
        assert abs(getattr(both, name) - value) < (1e-4 if "loss" in name else 1e-6), name


def test_losses_on_a_share_of_the_text_leave_the_other_figures_alone():
    (part,) = tally(tiny.lm(), tiny.sae(), {"": TEXT}, batch=2, spliced=0.4).values()
    whole = measure(tiny.lm(), tiny.sae(), TEXT, batch=2)
    assert 0 < part.quality.predicted < whole.predicted
    assert (part.quality.fvu, part.quality.dead, part.quality.tokens) == (whole.fvu, whole.dead, whole.tokens)


def test_an_sae_that_reconstructs_all_loses_nothing():
    lm, some = tiny.lm(), tiny.sae()
    eye = torch.eye(lm.d_model).double()
    config = some.config.model_copy(update={"rule": "relu", "k": None, "d_sae": 2 * lm.d_model})
    W = torch.cat([eye, -eye])
    perfect = SAE(config, W.T.contiguous(), torch.zeros(len(W)).double(), W, torch.zeros(lm.d_model).double())
    found = measure(lm, perfect, TEXT)
    assert found.fvu < 1e-12
    assert abs(found.kl_spliced) < 1e-6
    assert abs(found.loss_recovered - 1) < 1e-6


def test_nearest_is_the_largest_cosine_with_another(monkeypatch):
    monkeypatch.setattr("demur.sae.quality.PART", 7)
    sae = tiny.sae()
    rows = F.normalize(sae.W_dec, dim=1)
    for i, found in enumerate(nearest(sae).tolist()):
        assert abs(found - max(float(rows[i] @ rows[j]) for j in range(len(rows)) if j != i)) < 1e-6
    twin = SAE(
        sae.config, sae.W_enc, sae.b_enc, torch.cat([sae.W_dec[:1], 2 * sae.W_dec[:1], sae.W_dec[2:]]), sae.b_dec
    )
    assert torch.allclose(nearest(twin)[:2], torch.ones(2), atol=1e-6)


def test_an_empty_tally_adds_nothing():
    (one,) = tally(tiny.lm(), tiny.sae(), {"": TEXT}).values()
    assert (one + Tally.of(tiny.sae())).quality == one.quality
