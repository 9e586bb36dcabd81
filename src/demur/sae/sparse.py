"""Products with few active features: what an SAE's training step comes down to, once for CPUs and once for GPUs.

The one dense product is the encoder's (`pre_activations`). All others touch only the active features: `decode`, `dots`
and `by_feature` are given those as an `Active`, and each costs `active × d_model`. On a CPU they are PyTorch's own
kernels; on a GPU, Triton's where it is installed (`triton_kernels`).
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PIECE = 4 * 2**20
"""Pre-activations held at once on a CPU: 16 MB, which the caches and the allocator can take (glibc gives anything over
32 MB back to the system, and every page of it is then fetched anew)."""
PIECE_ON_GPU = 2**28


class Active(NamedTuple):
    """The active features of a batch, row by row (CSR): `features[offsets[i]:offsets[i + 1]]` are those of token i."""

    offsets: Int[Tensor, " tokens_and_1"]
    features: Int[Tensor, " n"]
    values: Float[Tensor, " n"]

    @property
    def rows(self) -> Int[Tensor, " n"]:
        """The token of each entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


class ByFeature(NamedTuple):
    """The same entries feature by feature (CSC): `rows[offsets[j]:offsets[j + 1]]` are the tokens of feature j."""

    offsets: Int[Tensor, " d_sae_and_1"]
    rows: Int[Tensor, " n"]
    order: Int[Tensor, " n"]
    """Where each entry stands in `Active`."""

    @classmethod
    def of(cls, active: Active, d_sae: int) -> "ByFeature":
        """Sorts the entries; within a feature, tokens keep their order, so that sums do not depend on chance."""
        order = active.features.sort(stable=True).indices
        counts = torch.bincount(active.features, minlength=d_sae)
        return cls(F.pad(counts.cumsum(0), (1, 0)), active.rows[order], order)


def rows_at_once(d_sae: int, device: torch.device) -> int:
    """Tokens whose pre-activations are held at once."""
    return max(64, (PIECE if device.type == "cpu" else PIECE_ON_GPU) // d_sae)


def product(
    x: Float[Tensor, "rows inner"], W: Float[Tensor, "columns inner"], b: Float[Tensor, " columns"] | None = None
) -> Float[Tensor, "rows columns"]:
    """`x Wᵀ + b`.

    On a CPU by oneDNN, where torch has it: on processors that are not Intel's, torch's own choice (MKL) takes twice as
    long in float32.
    """
    linear = _onednn_linear()
    if linear is not None and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel():
        return linear(x, W, b, "none", [], "")
    return F.linear(x, W, b)


@functools.cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    # The operator that torch.compile uses on CPUs; not a public name, so it is tried before it is trusted.
    try:
        linear: Any = torch.ops.mkldnn._linear_pointwise
        one = torch.ones(2, 2)
        return linear if torch.equal(linear(one, one, None, "none", [], ""), 2 * one) else None
    except (AttributeError, RuntimeError, TypeError):
        return None


def decode(active: Active, W_dec: Float[Tensor, "d_sae d_model"]) -> Float[Tensor, "tokens d_model"]:
    """The sum of each token's active rows of the decoder."""
    return _bags(active.features, active.offsets, active.values, W_dec)


def by_feature(
    entries: ByFeature, values: Float[Tensor, " n"], x: Float[Tensor, "tokens d_model"]
) -> Float[Tensor, "d_sae d_model"]:
    """For each feature the sum of its tokens' rows of `x`, times `values` (one per entry, as `Active` has them)."""
    return _bags(entries.rows, entries.offsets, values[entries.order], x)


def sums(entries: ByFeature, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
    """For each feature the sum of its entries' `values`. Unlike `scatter_add_` on a GPU, always in the same order."""
    return torch.segment_reduce(values[entries.order], "sum", offsets=entries.offsets, initial=0.0)


def dots(active: Active, x: Float[Tensor, "tokens d_model"], W: Float[Tensor, "d_sae d_model"]) -> Float[Tensor, " n"]:
    """For each entry, the product of its token's row of `x` and its feature's row of `W`."""
    if len(active.features) == 0:
        return active.values.new_zeros(0)
    kernels = _triton() if x.is_cuda else None
    if kernels is not None:
        return kernels.dots(active.offsets, active.features, x, W)
    size = (len(x), len(W))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "sparse CSR is in beta"
        where = torch.sparse_csr_tensor(
            active.offsets, active.features, torch.zeros_like(active.values), size, check_invariants=False
        )
    return torch.sparse.sampled_addmm(where, x, W.t(), beta=0.0).values()


def _bags(indices: Tensor, offsets: Tensor, values: Tensor, table: Tensor) -> Tensor:
    kernels = _triton() if table.is_cuda else None
    if kernels is not None:
        return kernels.bags(indices, offsets, values, table)
    return F.embedding_bag(indices, table, offsets, per_sample_weights=values, mode="sum", include_last_offset=True)


@functools.cache
def _triton() -> Any:
    try:
        from demur.sae import triton_kernels
    except ImportError:
        return None
    return triton_kernels
