"""How often gates open on what people ask first in chats: `python benchmarks/first_turns.py [TEXT] [--policy gated]`.

Plain prompts by many hands, which no gate here is fitted to or set by: what a false-refusal budget is worth on them. TEXT is
a JSONL file of chats (`messages`), by default `text/chat_oasst_sample.jsonl.gz` of the data folder.
"""

import argparse
import json
from pathlib import Path

from demur.config import locate
from demur.data.corpus import documents
from demur.errors import PromptError
from demur.evaluation.statistics import Rate
from demur.models.load import ModelSettings, load
from demur.records import Message
from demur.steering.generate import decide
from demur.steering.policies import find_policy, load_saes

LONGEST = 2000
"""Characters of a first turn; longer ones hold documents."""


def first_turns(path: Path) -> list[str]:
    """What each chat begins with, once each, in order.

    Raises:
        FileError: no such file, or not JSONL.
        PromptError: no chat in it.
    """
    begun = [row[0] for row in documents(locate(path)) if not isinstance(row, str)]
    asked = [said["content"] for said in begun if said["role"] == "user" and len(said["content"]) < LONGEST]
    if not asked:
        raise PromptError(f"{path} has no chats (`messages`) that a user begins.")
    return list(dict.fromkeys(asked))


def main() -> None:
    """Prints, for each policy, the share of first turns on which its gate opens, and those."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, default=Path("text/chat_oasst_sample.jsonl.gz"))
    parser.add_argument("--policy", action="append", help="name or file; may be repeated")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    policies = [find_policy(name) for name in given.policy or ["gated"]]
    asked = first_turns(given.text)
    lm = load(ModelSettings(dtype=given.dtype))
    saes = load_saes(lm, policies)
    talks = [(Message(role="user", content=text),) for text in asked]
    found = {}
    for policy in policies:
        opened = [text for text, seen in zip(asked, decide(lm, saes, talks, policy), strict=True) if seen["open"]]
        rate = Rate.of(len(opened), len(asked))
        found[f"{policy.name} ({policy.hash})"] = {"opened": rate.model_dump(), "prompts": opened}
        if not given.json:
            print(
                f"{policy.name} ({policy.hash}): {rate}", *(f"  {' '.join(t.split())[:110]}" for t in opened), sep="\n"
            )
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
