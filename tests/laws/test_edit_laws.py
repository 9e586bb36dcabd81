"""The laws of the edit: `x' = x + Σ (f' − f) W_dec`, against a naive loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.records import Edit
from demur.sae.edit import Edits, edit
from demur.sae.rules import top_k
from demur.sae.sae import SAE
from tests import tiny

X = torch.randn(20, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def naive(x: torch.Tensor, edits: list[Edit], keep_error: bool) -> torch.Tensor:
    sae = tiny.sae()
    out = []
    for row in x:
        pre = (row - sae.b_dec) @ sae.W_enc + sae.b_enc
        order = sorted(range(len(pre)), key=lambda j: (-float(pre[j]), j))[: sae.config.k]
        f = {j: max(0.0, float(pre[j])) for j in order}
        base = row.clone() if keep_error else sae.b_dec + sum(v * sae.W_dec[j] for j, v in f.items())
        for e in edits:
            now = f.get(e.feature, 0.0)
            then = {
                "clamp": e.value,
                "clamp_min": max(now, e.value),
                "scale": now * e.value,
                "add": now + e.value,
                "ablate": 0.0,
            }[e.operation]
            base = base + (then - now) * sae.W_dec[e.feature]
        out.append(base)
    return torch.stack(out)


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("operation", ["clamp", "clamp_min", "scale", "add", "ablate"])
def test_edit_is_the_naive_loop(operation, keep_error):
    edits = [Edit(feature=f, operation=operation, value=1.5) for f in (0, 13, 40)]
    found = edit(X, tiny.sae(), Edits.of(edits, X), keep_error)
    torch.testing.assert_close(found, naive(X, edits, keep_error), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adding_is_the_same_among_other_edits_and_encodes_nothing(monkeypatch, dtype):
    x, scale = X.to(dtype), torch.linspace(0.5, 2, len(X), dtype=dtype)[:, None]
    adds = [Edit(feature=f, operation="add", value=1.5 + f) for f in (0, 13, 40)]
    beside = Edit(feature=7, operation="scale", value=1.0)  # changes nothing, but has to know its feature's activation
    general = edit(x, tiny.sae(), Edits.of([*adds, beside], x), scale=scale)
    monkeypatch.setattr(SAE, "encode_sparse", None)
    found = edit(x, tiny.sae(), Edits.of(adds, x), scale=scale)
    assert found.dtype == dtype
    torch.testing.assert_close(found, general, atol=1e-12 if dtype == torch.float64 else 0.1, rtol=0)


def test_clamping_to_the_present_value_changes_nothing():
    sae = tiny.sae()
    for x in X.split(1):
        f = sae.encode(x)[0]
        edits = [Edit(feature=j, operation="clamp", value=float(f[j])) for j in range(sae.config.d_sae)]
        assert torch.equal(edit(x, sae, Edits.of(edits, x)), x)


def test_the_error_term_is_kept():
    sae, edits = tiny.sae(), Edits.of([Edit(feature=5, operation="add", value=2.0)], X)
    error = X - sae.decode(sae.encode(X))
    spliced = edit(X, sae, edits, keep_error=False)
    torch.testing.assert_close(edit(X, sae, edits) - spliced, error, atol=1e-12, rtol=0)


def test_the_input_is_not_modified():
    before = X.clone()
    edit(X, tiny.sae(), Edits.of([Edit(feature=5, operation="clamp", value=9.0)], X))
    assert torch.equal(X, before)


def test_a_clamped_feature_displaces_none():
    sae = tiny.sae()
    f = sae.encode(X)
    outside = int((f.sum(0) == 0).nonzero()[0, 0]) if (f.sum(0) == 0).any() else int(f.sum(0).argmin())
    moved = edit(X, sae, Edits.of([Edit(feature=outside, operation="clamp", value=3.0)], X))
    torch.testing.assert_close(moved - X, (3.0 - f[:, [outside]]) * sae.W_dec[outside], atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 7))
def test_top_k_gives_ties_to_the_lowest_index(rows, k):
    pre = torch.tensor(rows, dtype=torch.float64)
    values, indices = top_k(pre, min(k, 6))
    for row, v, i in zip(rows, values.tolist(), indices.tolist(), strict=True):
        order = sorted(range(6), key=lambda j: (-row[j], j))[: min(k, 6)]
        wanted = {j: float(row[j]) for j in order if row[j] > 0}
        assert {j: value for j, value in zip(i, v, strict=True) if value > 0} == wanted
