"""How often gates open on what people say in chats: `python benchmarks/chat_turns.py [CHATS ...] [--policy gated]`.

What a false-refusal budget is worth on plain prompts by many hands: first turns, and later ones, which lean on others.
CHATS are JSONL files of chats (`messages`); by default our own of the test split, which no gate is fitted to or set by, and
`text/chat_oasst_sample.jsonl.gz` of the data folder, which `gated` is not either.
"""

import argparse
import json
from pathlib import Path

from demur.config import locate
from demur.data.chats import Chat, as_prompts, load_chats, shipped_chats
from demur.evaluation.statistics import Rate
from demur.features.signals import fits
from demur.models.load import ModelSettings, load
from demur.records import evenly
from demur.steering.generate import decide
from demur.steering.policies import find_policy, load_saes

SHOWN = 10
"""Of the turns that open a gate, so many are printed."""


def main() -> None:
    """Prints, for each policy and file, the share of first and of later turns on which its gate opens, and some of those."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", nargs="*", type=Path)
    parser.add_argument("--policy", action="append", help="name or file; may be repeated")
    parser.add_argument("--turns", type=int, default=400, help="most of each sort, evenly spaced")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    policies = [find_policy(name) for name in given.policy or ["gated"]]
    files = given.chats or [Path("text/chat_oasst_sample.jsonl.gz")]
    of: dict[str, list[Chat]] = {} if given.chats else {"demur, test": shipped_chats("test")}
    of |= {path.name: load_chats(locate(path)) for path in files}
    lm = load(ModelSettings(dtype=given.dtype))
    saes = load_saes(lm, policies)
    found: dict[str, dict] = {}
    for name, chats in of.items():
        # Some chats begin alike: what is said is asked about once.
        turns = list(dict.fromkeys(row.conversation for row in as_prompts(chats) if fits(lm, row.conversation)))
        for sort in ("first", "later"):
            talks = evenly([t for t in turns if (len(t) == 1) == (sort == "first")], given.turns)
            for policy in policies if talks else ():
                seen = decide(lm, saes, talks, policy, batch=16)
                opened = [talk[-1].content for talk, s in zip(talks, seen, strict=True) if s["open"]]
                rate = Rate.of(len(opened), len(talks))
                found[f"{name}, {sort} turns, {policy.name} {policy.hash}"] = {
                    "opened": rate.model_dump(),
                    "turns": opened,
                }
                if not given.json:
                    print(f"{name}, {sort} turns: {policy.name} ({policy.hash}) opens on {rate}", flush=True)
                    for text in evenly(opened, SHOWN):
                        print(f"    {' '.join(text.split())[:110]}", flush=True)
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
