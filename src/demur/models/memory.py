"""Memory on a CPU."""

import ctypes
from contextlib import suppress

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""


def keep_freed_memory(device: torch.device) -> None:
    """Where the device is a CPU, lets the process keep large pieces of memory that it has freed, from here on.

    By default glibc maps every large tensor anew, and the kernel fills its pages with zeros at the first touch: a tenth of
    the whole line's time when an SAE was trained (docs/results/sae-training.md).
    """
    if device.type != "cpu":
        return
    with suppress(AttributeError, OSError, TypeError):  # other C libraries have no such call
        libc = ctypes.CDLL(None)
        # Older ones take 32 MiB at most; and to set the second alone would fix the first at 128 KiB.
        if libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
