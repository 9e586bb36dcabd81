"""Refusals that we wrote: for SAE training, and for scoring features on a model that hardly refuses by itself."""

import json
import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files


@cache
def _parts() -> dict[str, list[str]]:
    return json.loads(files("demur.shipped").joinpath("refusals.json").read_text(encoding="utf-8"))


def refusals(seed: int) -> Iterator[str]:
    """An endless row of refusals - an opening, mostly a reason, mostly an offer - in an order set by the seed."""
    rng = random.Random(seed)
    parts = _parts()
    while True:
        yield " ".join(text for name in ("openings", "reasons", "offers") if (text := rng.choice(parts[name])))
