"""What a gate's sensors say of prompts: read once, by the code that steers, and kept; the rest is arithmetic."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demur.files import to_line, whole_lines
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Message, Policy, Prompt
from demur.sae.sae import SAE
from demur.steering.generate import decide

SCORES = "scores.jsonl"
AT_A_TIME = 256
"""Prompts read between two writes to the file: what a kill may lose."""


@dataclass(frozen=True)
class Score:
    """What a gate makes of one prompt."""

    score: float
    """In the sensor's units."""
    kind: str | None
    """Which kind of harm it reads most like, where the gate tells them apart."""


def read_scores(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    reading: Policy,
    prompts: Sequence[Prompt],
    folder: Path | None = None,
    batch: int = 64,
) -> list[Score]:
    """Scores of prompts by the gate of a policy, whose threshold does not matter.

    With `folder`, those that are known from `scores.jsonl` are not read again: it is keyed by the policy's hash (sensors,
    vectors, model, SAEs), the model's precision and the conversation.

    Raises:
        PolicyError, SAEError: the sensors do not fit the model or the SAEs.
        PromptError: a prompt longer than the context.
    """
    path = folder / SCORES if folder else None
    sensor = f"{reading.hash} {str(next(lm.model.parameters()).dtype).removeprefix('torch.')}"
    rows = whole_lines(path) if path else []
    known = {r["prompt"]: Score(r["score"], r["kind"]) for r in rows if r["sensor"] == sensor}
    keys = [conversation_hash(p.conversation) for p in prompts]
    missing = {k: p for k, p in zip(keys, prompts, strict=True) if k not in known}
    order = sorted(missing, key=lambda k: -sum(len(m.content) for m in missing[k].conversation))
    if order:
        with bar("reading prompts", len(keys), len(keys) - len(order)) as progress:
            for start in range(0, len(order), AT_A_TIME):
                some = order[start : start + AT_A_TIME]
                seen = decide(lm, saes, [missing[k].conversation for k in some], reading, batch)
                found = {k: Score(s["gate"], s["hazard"]) for k, s in zip(some, seen, strict=True)}
                if path:
                    with path.open("a", encoding="utf-8") as file:
                        file.writelines(
                            to_line({"sensor": sensor, "prompt": k, "score": s.score, "kind": s.kind})
                            for k, s in found.items()
                        )
                known |= found
                progress.step(len(some))
    return [known[k] for k in keys]


def conversation_hash(conversation: Sequence[Message]) -> str:
    """Twelve hex digits of what was said."""
    said = [[m.role, m.content] for m in conversation]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]
