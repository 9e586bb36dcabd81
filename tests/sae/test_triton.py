"""The GPU kernels against the CPU's: on a GPU where there is one, else in the interpreter that Triton has."""

import os
from importlib.util import find_spec

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

if find_spec("triton") is None:
    pytest.skip("Triton is not installed (it comes with torch's builds for GPUs)", allow_module_level=True)

from demur.sae import sparse, triton_kernels
from tests.sae.test_sparse import W, X, active

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("width", [12, 300])
def test_the_kernels_are_the_cpus_products(width):
    a = active()
    x, table = (t.repeat(1, 30)[:, :width].to(DEVICE) for t in (X, W))
    entries = sparse.ByFeature.of(a, len(W))
    offsets, features, values = (t.to(DEVICE) for t in a)
    close = {"atol": 1e-5, "rtol": 1e-5, "check_device": False}
    torch.testing.assert_close(
        triton_kernels.bags(features, offsets, values, table), sparse.decode(a, table.cpu()), **close
    )
    torch.testing.assert_close(
        triton_kernels.bags(*(t.to(DEVICE) for t in (entries.rows, entries.offsets, a.values[entries.order])), x),
        sparse.by_feature(entries, a.values, x.cpu()),
        **close,
    )
    torch.testing.assert_close(
        triton_kernels.dots(offsets, features, x, table), sparse.dots(a, x.cpu(), table.cpu()), **close
    )
