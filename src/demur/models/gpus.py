"""GPUs by name: what their makers' data sheets say, for planning.

Dense figures (without structured sparsity), with sums in float32 where the sheet gives a choice; the SXM variant unless
the name says otherwise. Sources: NVIDIA's data sheets of H200, H100, A100, L40S, L4, A10, V100 and T4, and the
architecture white papers of GA102 (RTX 3090, RTX A6000) and AD102 (RTX 4090); AMD's data sheet of MI300X (vector
float32).
"""

import difflib
from typing import NamedTuple

from demur.errors import SettingsError


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    memory: float
    """GB, of 10⁹ bytes."""
    half: float
    """TFLOP/s in bfloat16, or in float16 where it has no bfloat16."""
    single: float
    """TFLOP/s in float32, without TF32, which torch does not use unless it is told to."""
    bandwidth: float
    """GB/s between memory and chip."""
    bfloat16: bool = True


GPUS = (
    Gpu("H200", 141, 989, 67, 4800),
    Gpu("MI300X", 192, 1307.4, 163.4, 5300),
    Gpu("H100", 80, 989, 67, 3350),
    Gpu("H100-PCIe", 80, 756, 51, 2000),
    Gpu("A100-80G", 80, 312, 19.5, 2039),
    Gpu("A100-40G", 40, 312, 19.5, 1555),
    Gpu("L40S", 48, 362, 91.6, 864),
    Gpu("RTX A6000", 48, 154.8, 38.7, 768),
    Gpu("V100-32G", 32, 125, 15.7, 900, bfloat16=False),
    Gpu("RTX 4090", 24, 165.2, 82.6, 1008),
    Gpu("RTX 3090", 24, 71, 35.6, 936),
    Gpu("A10", 24, 125, 31.2, 600),
    Gpu("L4", 24, 121, 30.3, 300),
    Gpu("T4", 16, 65, 8.1, 300, bfloat16=False),
)


def find_gpu(name: str) -> Gpu:
    """A GPU by name, whatever its case, spaces and hyphens.

    Raises:
        SettingsError: it is not in the table.
    """
    by_key = {_key(g.name): g for g in GPUS}
    found = by_key.get(_key(name))
    if found is None:
        near = difflib.get_close_matches(_key(name), by_key, n=1, cutoff=0.4)
        hint = f"did you mean {by_key[near[0]].name}? " if near else ""
        raise SettingsError(f"no GPU {name!r} in the table; {hint}Known are {', '.join(g.name for g in GPUS)}.")
    return found


def _key(name: str) -> str:
    words = name.casefold().replace("-", " ").split()
    return "".join(w for w in words if w not in ("nvidia", "geforce", "tesla"))
