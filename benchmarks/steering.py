"""What a policy costs while generating: time with its gate shut and with it acting, over the plain model's.

    .venv/bin/python benchmarks/steering.py [--policy gated] [--sae FOLDER] [--tokens 64] [--rounds 7] [--json]

Three arms make the same number of tokens in answer to the same shipped test prompts, turn by turn, with transformers' own
`generate`: no hooks at all; the policy with a gate that nothing opens (the sensors are read, the model is the plain one);
the policy with a gate that everything opens (sensors and edits). Ratios are of medians, at batch 1 and 8; one figure a
round is the time of all its prompts.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

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


def seconds(lm: LanguageModel, saes: dict, policy: Policy | None, batches: list[Encoded], tokens: int) -> float:
    """Seconds for all batches, under a policy or without any hook."""
    spent = 0.0
    for prompts in batches:
        if policy is None:
            spent += made(lm, prompts, tokens)
            continue
        begun = time.perf_counter()
        with steer(lm, saes, [policy] * len(prompts.ids), prompts):
            made(lm, prompts, tokens)
        spent += time.perf_counter() - begun  # with what it takes to begin and to end
    return spent


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
    lm, policy = load(ModelSettings(model=args.model, dtype=args.dtype)), find_policy(args.policy)
    saes = load_saes(lm, [policy], args.sae)
    arms = {"plain": None, "shut": at(policy, math.inf), "acting": at(policy, -math.inf)}
    talk = [row.conversation for row in shipped_prompts("test").sample(PROMPTS).rows]
    found: dict[str, dict] = {}
    for size in BATCHES:
        batches = [encode(lm, talk[i : i + size]) for i in range(0, len(talk), size)]
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for arm in arms.values():
            seconds(lm, saes, arm, batches[:1], 4)  # warm up
        for turn in range(args.rounds):
            # Each arm goes first as often as the others, for what runs first may find other caches.
            order = list(arms)[turn % 3 :] + list(arms)[: turn % 3]
            for name in order:
                taken[name].append(seconds(lm, saes, arms[name], batches, args.tokens))
        median = {name: statistics.median(t) for name, t in taken.items()}
        rate = PROMPTS * args.tokens / median["plain"]
        found[str(size)] = {
            "seconds": {name: [round(s, 4) for s in t] for name, t in taken.items()},
            "ratio": {name: round(median[name] / median["plain"], 4) for name in ("shut", "acting")},
            "plain_tokens_per_second": round(rate, 1),
        }
    result = {"policy": policy.hash, "tokens": args.tokens, "rounds": args.rounds, "machine": machine(), "batch": found}
    if args.json:
        print(json.dumps(result))
        return
    for size, figures in found.items():
        shut, acting = figures["ratio"]["shut"], figures["ratio"]["acting"]
        print(
            f"batch {size}: {figures['plain_tokens_per_second']:.0f} tokens/s plain; time with the gate shut "
            f"{shut:.3f} of it, acting {acting:.3f}"
        )


if __name__ == "__main__":
    main()
