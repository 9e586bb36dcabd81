# Triton is there with a GPU's build of torch only, and compiles what pyright takes for plain functions.
# pyright: reportMissingImports=false, reportIndexIssue=false
"""The sparse products of `sparse`, in Triton, for GPUs. Importing this fails where Triton is not installed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 256
"""Columns that one program works on."""


@triton.jit
def _bags_kernel(indices, offsets, values, table, out, width, BLOCK: tl.constexpr):
    bag, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(tl.load(offsets + bag), tl.load(offsets + bag + 1)):
        row = tl.load(table + tl.load(indices + i) * width + columns, mask=inside, other=0.0)
        total += tl.load(values + i) * row
    tl.store(out + bag.to(tl.int64) * width + columns, total, mask=inside)


@triton.jit
def _dots_kernel(indices, offsets, x, table, out, width, BLOCK: tl.constexpr):
    token, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < width
    mine = tl.load(x + token.to(tl.int64) * width + columns, mask=inside, other=0.0)
    for i in range(tl.load(offsets + token), tl.load(offsets + token + 1)):
        row = tl.load(table + tl.load(indices + i) * width + columns, mask=inside, other=0.0)
        tl.store(out + i, tl.sum(mine * row, axis=0))


def bags(indices: Tensor, offsets: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """`out[b] = Σ values[i] · table[indices[i]]` over `offsets[b] ≤ i < offsets[b + 1]`, `[bags, width]`.

    A bag's terms are added in order by one program, so that the sum does not depend on chance.
    """
    width = table.shape[1]
    out = table.new_empty(len(offsets) - 1, width)
    if len(out):
        grid = (len(out), triton.cdiv(width, WIDTH))
        _bags_kernel[grid](indices, offsets, values.contiguous(), table.contiguous(), out, width, BLOCK=WIDTH)
    return out


def dots(offsets: Tensor, indices: Tensor, x: Tensor, table: Tensor) -> Tensor:
    """`out[i] = x[row of i] · table[indices[i]]`, `[n]`."""
    width, out = table.shape[1], torch.empty(len(indices), device=x.device, dtype=x.dtype)
    if len(out):
        block = triton.next_power_of_2(width)
        _dots_kernel[(len(x),)](indices, offsets, x.contiguous(), table.contiguous(), out, width, BLOCK=block)
    return out
