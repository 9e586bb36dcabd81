"""A displacement as a sum of features: what comes nearest, never negative, no more of it than asked for."""

import itertools

import pytest
import torch
from scipy.optimize import lsq_linear

from demur.features.pursuit import pursue


def rows(count: int, width: int, seed: int = 0):
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=1)


def test_what_was_added_up_is_found_again():
    W_dec = rows(60, 48)
    made = {7: 3.0, 21: 2.0, 40: 1.0}
    direction = sum(x * W_dec[f] for f, x in made.items())
    assert pursue(direction, W_dec, range(60), 3) == pytest.approx(made, abs=1e-5)
    assert list(pursue(direction, W_dec, range(60), 3)) == [7, 21, 40]


def test_the_amounts_are_the_nearest_that_are_not_negative():
    W_dec, direction = rows(30, 12), rows(1, 12, seed=1)[0] * 9
    found = pursue(direction, W_dec, range(30), 8)
    assert all(x > 0 for x in found.values())
    by_another = lsq_linear(W_dec[list(found)].double().T.numpy(), direction.double().numpy(), (0, torch.inf))
    assert list(found.values()) == pytest.approx(by_another.x.tolist(), abs=1e-4)


def test_each_that_joins_is_the_one_most_along_what_is_missing():
    W_dec, direction = rows(20, 10), rows(1, 10, seed=2)[0]
    first = pursue(direction, W_dec, range(20), 1)
    best = int((W_dec @ direction).argmax())
    assert first == pytest.approx({best: float(W_dec[best] @ direction)}, abs=1e-6)
    missing = direction - first[best] * W_dec[best]
    assert set(pursue(direction, W_dec, range(20), 2)) <= {best, int((W_dec @ missing).argmax())}


def test_more_features_come_nearer_and_none_are_taken_from_elsewhere():
    W_dec, direction = rows(40, 16), rows(1, 16, seed=3)[0]
    some = list(range(0, 40, 2))
    gaps = []
    for count in (1, 2, 4, 8):
        found = pursue(direction, W_dec, some, count)
        assert len(found) <= count
        assert set(found) <= set(some)
        gaps.append(float((direction - sum(x * W_dec[f] for f, x in found.items())).norm()))
    assert all(later <= sooner + 1e-9 for sooner, later in itertools.pairwise(gaps))


def test_what_no_feature_points_along_is_made_of_none():
    W_dec = rows(5, 8).abs()
    assert pursue(-torch.ones(8), W_dec, range(5), 3) == {}
    assert pursue(torch.zeros(8), W_dec, range(5), 3) == {}
    assert pursue(torch.ones(8), W_dec, [], 3) == {}
