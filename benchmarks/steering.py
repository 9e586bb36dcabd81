"""What a policy costs while generating: time with its gate shut and with it acting, over the plain model's.

    .venv/bin/python benchmarks/steering.py [--policy gated] [--sae FOLDER] [--tokens 64] [--rounds 7] [--json]

Three arms answer each batch of shipped test prompts with the same number of tokens, one straight after the other, with
transformers' own `generate`: no hooks at all; the policy with a gate that nothing opens (the sensors are read, the model is
the plain one); the policy with a gate that everything opens (sensors and edits). A ratio is of two such neighbours, since
minutes apart the same work differs by more than the arms do; the median over batches and rounds is printed with its 95 %
interval, at batch 1 and 8.
"""

import argparse
import json
import math
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from demur.data.prompts import shipped_prompts
from demur.models.chat import Encoded, encode
from demur.models.load import LanguageModel, ModelSettings, load
from demur.records import Policy
from demur.runs import machine
from demur.steering.policies import find_policy, load_saes
from demur.steering.session import steer

BATCHES = (1, 8)
PROMPTS = 8
"""At batch 1 one after the other, at batch 8 together."""


def at(policy: Policy, threshold: float) -> Policy:
    """The policy with another threshold, for every kind of harm."""
    assert policy.gate is not None, f"policy {policy.name} has no gate"
    changes = {"threshold": threshold, "thresholds": {}}
    return policy.model_copy(update={"gate": policy.gate.model_copy(update=changes)})


@torch.inference_mode()
def made(lm: LanguageModel, prompts: Encoded, tokens: int) -> float:
    """Seconds that so many new tokens take for a batch."""
    begun = time.perf_counter()
    lm.model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def seconds(lm: LanguageModel, saes: dict, policy: Policy | None, prompts: Encoded, tokens: int) -> float:
    """Seconds for a batch, under a policy or without any hook."""
    begun = time.perf_counter()
    with steer(lm, saes, [policy] * len(prompts.ids), prompts) if policy else nullcontext():
        made(lm, prompts, tokens)
    return time.perf_counter() - begun  # with what it takes to begin and to end


def middle(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and its 95 % bootstrap interval."""
    drawn = bootstrap((ratios,), np.median, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(np.median(ratios)), float(drawn.low), float(drawn.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="gated")
    parser.add_argument("--sae", type=Path, action="append", default=[])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: give at least 2, an interval needs as many ratios.")
    lm, policy = load(ModelSettings(model=args.model, dtype=args.dtype)), find_policy(args.policy)
    saes = load_saes(lm, [policy], args.sae)
    arms = {"plain": None, "shut": at(policy, math.inf), "acting": at(policy, -math.inf)}
    talk = [row.conversation for row in shipped_prompts("test").sample(PROMPTS).rows]
    found: dict[str, dict] = {}
    for size in BATCHES:
        batches = [encode(lm, talk[i : i + size]) for i in range(0, len(talk), size)]
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for arm in arms.values():
            seconds(lm, saes, arm, batches[0], 4)  # warm up
        for turn in range(args.rounds):
            for place, prompts in enumerate(batches):
                # Each arm goes first as often as the others, for what runs first may find other caches.
                begins = (turn + place) % len(arms)
                for name in [*arms][begins:] + [*arms][:begins]:
                    taken[name].append(seconds(lm, saes, arms[name], prompts, args.tokens))
        ratios = {name: [s / p for s, p in zip(taken[name], taken["plain"], strict=True)] for name in taken}
        found[str(size)] = {
            "seconds": {name: [round(s, 4) for s in t] for name, t in taken.items()},
            "ratio": {name: [round(r, 4) for r in middle(ratios[name])] for name in ("shut", "acting")},
            "n": len(taken["plain"]),
            "plain_tokens_per_second": round(size * args.tokens / statistics.median(taken["plain"]), 1),
        }
    result = {"policy": policy.hash, "tokens": args.tokens, "rounds": args.rounds, "machine": machine(), "batch": found}
    if args.json:
        print(json.dumps(result))
        return
    for size, figures in found.items():
        shut, acting = ("{:.3f} [{:.3f}, {:.3f}]".format(*figures["ratio"][name]) for name in ("shut", "acting"))
        print(
            f"batch {size}: {figures['plain_tokens_per_second']:.0f} tokens/s plain; time with the gate shut "
            f"{shut} of it, acting {acting}; n = {figures['n']}"
        )


if __name__ == "__main__":
    main()
