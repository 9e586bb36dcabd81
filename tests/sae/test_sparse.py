"""The sparse products against loops."""

import pytest
import torch

from demur.sae import sparse
from demur.sae.rules import top_k
from demur.sae.sparse import Active, ByFeature, by_feature, decode, dots, product, sums


def active(tokens: int = 30, d_sae: int = 20) -> Active:
    """Rows of 0 to 5 entries in no order, some features never active."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 6, (tokens,), generator=generator)
    features = torch.cat([torch.randperm(d_sae - 3, generator=generator)[:n] for n in counts.tolist()])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Active(offsets, features, torch.randn(len(features), generator=generator))


X = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
W = torch.randn(20, 12, generator=torch.Generator().manual_seed(2))


def test_sparse_products_are_those_of_a_loop():
    a = active()
    rows = [i for i in range(30) for _ in range(int(a.offsets[i + 1] - a.offsets[i]))]
    assert a.rows.tolist() == rows
    decoded, gathered, summed, products = torch.zeros(30, 12), torch.zeros(20, 12), torch.zeros(20), []
    for row, feature, value in zip(rows, a.features.tolist(), a.values, strict=True):
        decoded[row] += value * W[feature]
        gathered[feature] += value * X[row]
        summed[feature] += value
        products.append(X[row] @ W[feature])
    torch.testing.assert_close(decode(a, W), decoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_feature(ByFeature.of(a, 20), a.values, X), gathered, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sums(ByFeature.of(a, 20), a.values), summed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dots(a, X, W), torch.stack(products), atol=1e-5, rtol=1e-5)


def test_no_tokens_and_no_active_features_are_nothing():
    for tokens in (0, 3):
        a = Active(torch.zeros(tokens + 1, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
        assert torch.equal(decode(a, W), torch.zeros(tokens, 12))
        assert torch.equal(by_feature(ByFeature.of(a, 20), a.values, X[:tokens]), torch.zeros(20, 12))
        assert len(dots(a, X[:tokens], W)) == 0
    assert product(X[:0], W).shape == (0, 20)


@pytest.mark.parametrize("onednn", [True, False])
def test_the_product_is_a_product(onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(sparse, "_onednn_linear", lambda: None)
    elif sparse._onednn_linear() is None:
        pytest.skip("this torch has no oneDNN")
    b = torch.randn(20, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(product(X, W, b), X @ W.t() + b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(product(X.t(), W[:3, :1].expand(3, 30)), X.t() @ W[:3, :1].expand(3, 30).t())


def test_a_piece_at_a_time_is_the_whole_batch(monkeypatch):
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(4))
    whole = top_k(product(x, W), 5)
    monkeypatch.setattr(sparse, "PIECE", 64 * 20)
    size = sparse.rows_at_once(20, torch.device("cpu"))
    assert size == 64
    parts = [top_k(product(part, W), 5) for part in x.split(size)]
    torch.testing.assert_close(torch.cat([v for v, _ in parts]), whole[0], atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.cat([i for _, i in parts]), whole[1])
