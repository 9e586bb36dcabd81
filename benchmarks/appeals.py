"""What appeals do to a policy: `python benchmarks/appeals.py [--policy gated] [--dtype bfloat16] [--rejected]`.

Look-alikes of harm that the policy refuses are upheld and pardoned (`demur pardon`); then, before and after: how many of
them, of their paraphrases, of harmful twins that differ in a few words, and of the harmful test prompts the gate opens on
and the model refuses. Two groups: those on which the reach was chosen, and others.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.loop.lookalikes import CHOSEN, FRESH, Lookalike

from demur.calibration.pardon import PardonSettings, pardon
from demur.config import data_folder
from demur.data.prompts import shipped_prompts
from demur.evaluation.judging.rules import rules
from demur.evaluation.outcomes import transcript
from demur.evaluation.statistics import Rate
from demur.models.generation import GenerationSettings
from demur.models.load import ModelSettings, load
from demur.records import Policy, Prompt, PromptSet
from demur.steering.generate import decide, generate
from demur.steering.policies import find_policy, load_saes


def rows(texts: list[str], label: str, name: str) -> list[Prompt]:
    """Prompts of one label."""
    return [Prompt(id=f"{name}-{i}", prompt=t, label=label) for i, t in enumerate(texts)]


class Bench:
    """A model and a policy, before and after."""

    def __init__(self, policy: str, dtype: str) -> None:
        self.before = find_policy(policy)
        self.lm = load(ModelSettings(dtype=dtype))
        self.saes = load_saes(self.lm, [self.before])

    def opened(self, policy: Policy, asked: list[Prompt]) -> list[bool]:
        """Whether the gate opens on each."""
        return [s["open"] for s in decide(self.lm, self.saes, [r.conversation for r in asked], policy)]

    def refused(self, policy: Policy, asked: list[Prompt]) -> list[bool]:
        """Whether each is refused, by rules."""
        how = GenerationSettings(max_new_tokens=64)
        talks = [r.conversation for r in asked]
        found = {i: r for i, r in generate(self.lm, self.saes, talks, [policy] * len(asked), how)}
        made = [transcript(row, policy, "appeals", found[i]) for i, row in enumerate(asked)]
        return [v.outcome == "refused" for v in rules.judge(made)]

    def told(self, after: Policy, asked: list[Prompt]) -> dict[str, dict]:
        """Gate open and refused, before and after; a reply is made anew only where the gate's mind has changed."""
        gates = {"before": self.opened(self.before, asked), "after": self.opened(after, asked)}
        said = self.refused(self.before, asked)
        changed = [i for i, (b, a) in enumerate(zip(*gates.values(), strict=True)) if b != a]
        later = list(said)
        for i, is_refused in zip(
            changed, self.refused(after, [asked[i] for i in changed]) if changed else [], strict=True
        ):
            later[i] = is_refused
        n = len(asked)
        return {
            "open": {when: Rate.of(sum(o), n).model_dump() for when, o in gates.items()},
            "refused": {"before": Rate.of(sum(said), n).model_dump(), "after": Rate.of(sum(later), n).model_dump()},
        }


def group(bench: Bench, cases: tuple[Lookalike, ...], harm: list[Prompt], with_rejected: bool) -> dict:
    """One group's figures."""
    is_open = bench.opened(bench.before, rows([c.asked for c in cases], "benign", "asked"))
    ours = [c for c, o in zip(cases, is_open, strict=True) if o][:10]
    asked = rows([c.asked for c in ours], "benign", "asked")
    twins = rows([c.twin for c in ours], "harmful", "twin")
    paraphrases = rows([p for c in ours for p in c.paraphrases], "benign", "paraphrase")
    appeals = PromptSet(name="appeals", rows=tuple([*asked, *(twins if with_rejected else [])]))
    began = time.monotonic()
    after = pardon(
        bench.lm,
        bench.saes,
        bench.before,
        appeals,
        shipped_prompts("train"),
        shipped_prompts("validation"),
        PardonSettings(),
    )
    found = {
        "pardoned": len(ours),
        "reach": after.receipt["pardon"]["reach"],
        "seconds": round(time.monotonic() - began, 1),
    }
    sets = {"asked": asked, "paraphrases": paraphrases, "twins": twins, "harmful": harm}
    return found | {name: bench.told(after, some) for name, some in sets.items()}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="gated")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--rejected", action="store_true", help="the harmful twins were appealed against too, and rejected"
    )
    parser.add_argument("--harm", type=int, default=0, help="this many of the harmful test prompts; 0: all")
    given = parser.parse_args()
    bench = Bench(given.policy, given.dtype)
    shared = data_folder() / "prompts" / "test.jsonl"
    test = PromptSet.load(shared) if shared.is_file() else shipped_prompts("test")
    harm = list(test.where(label="harmful").sample(given.harm or 10**9).rows)
    groups = {"chosen": CHOSEN, "fresh": FRESH}
    found = {name: group(bench, cases, harm, given.rejected) for name, cases in groups.items()}
    print(json.dumps({"policy": bench.before.name, "hash": bench.before.hash, "test": test.name} | found, indent=1))


if __name__ == "__main__":
    main()
