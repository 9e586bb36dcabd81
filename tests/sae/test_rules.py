"""The rules against naive loops, and SAEs of every rule on disk."""

import pytest
import torch

from demur.errors import SAEError
from demur.sae.rules import above, dense, top_k
from demur.sae.sae import SAE, SAEConfig

PRE = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).mul(4).round() / 4  # many ties


def test_top_k_is_a_stable_sort_cut_off():
    values, indices = top_k(PRE, 7)
    for row, v, i in zip(PRE.tolist(), values.tolist(), indices.tolist(), strict=True):
        order = sorted(range(60), key=lambda j: (-row[j], j))[:7]
        assert {j for j in order if row[j] > 0} == {j for j, a in zip(i, v, strict=True) if a > 0}
        assert all(a == max(0.0, row[j]) for j, a in zip(i, v, strict=True))


@pytest.mark.parametrize("threshold", [0.0, torch.linspace(-1, 2, 60)])
def test_above_is_every_feature_over_its_threshold(threshold):
    values, indices = above(PRE, threshold)
    wanted = torch.where((threshold < PRE) & (PRE > 0), PRE, 0)
    assert torch.equal(dense(values, indices, 60), wanted)
    assert values.shape[1] == (wanted > 0).sum(1).max()
    assert all(len(set(row)) == len(row) for row in indices.tolist())


def made(rule: str) -> SAE:
    k = 5 if rule in ("topk", "batchtopk") else None
    config = SAEConfig(d_model=16, d_sae=60, k=k, rule=rule, site="1.resid_post", model="m", model_hash="x")
    W = torch.nn.functional.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    threshold = {"threshold": torch.linspace(0.2, 2, 60)} if rule in ("batchtopk", "jumprelu") else {}
    return SAE(config, W.t().contiguous(), 0.1 * W[:, 0], W, W[0].clone(), **threshold)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "relu"])
def test_an_sae_of_any_rule_is_saved_and_loaded_the_same(rule, tmp_path):
    sae, x = made(rule), torch.randn(30, 16, generator=torch.Generator().manual_seed(2))
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert (again.hash, again.config) == (sae.hash, sae.config)
    assert torch.equal(again.encode(x), sae.encode(x))
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae.decode_sparse(*sae.encode_sparse(x)))
    # Whatever the widest row of a batch is, a row comes out the same.
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    torch.testing.assert_close(sae.encode(x), alone)
    if sae.threshold is not None:
        assert sae.to(x.double()).threshold.dtype == torch.float64


def test_what_a_rule_has_not_is_refused():
    for wrong in ({"rule": "topk"}, {"rule": "relu", "k": 3}):
        with pytest.raises(ValueError, match="`k`"):
            SAEConfig(d_model=4, d_sae=8, site="1.resid_post", model="m", model_hash="x", **wrong)
    jump = made("jumprelu")
    with pytest.raises(SAEError, match="threshold is missing"):
        SAE(jump.config, jump.W_enc, jump.b_enc, jump.W_dec, jump.b_dec)
    plain = made("relu")
    with pytest.raises(SAEError, match="has no threshold"):
        SAE(plain.config, plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, jump.threshold)
