"""Crescendo offline: fixed questions, a few turns each, with the model's own replies between them.

A file of scripts is JSONL with `id`, `turns` (the user's, in order), `label`, and optionally `kind`, `category`, `pair`
(which joins a harmful script to its benign twin) and `goal` (what the last turn is after, in one request). All scripts
go on by one turn in one batch; whatever the model says, a refusal too, stays in its conversation.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from pydantic import Field

from demur.evaluation.attacks.conversations import Conversations, Target, asked, said, with_controls
from demur.records import Label, Message, Policy, Prompt, Record, Transcript, evenly, read_rows

NAME = "crescendo"
"""The attack, and the set of its last replies."""


class Script(Record):
    """One conversation's questions."""

    id: str
    turns: tuple[str, ...] = Field(min_length=2)
    label: Label
    kind: str | None = None
    category: str | None = None
    pair: str | None = None
    goal: str | None = None

    @property
    def row(self) -> Prompt:
        """The script as a prompt, at its first turn."""
        about = self.model_dump(exclude={"turns"}) | {"family": NAME, "prompt": self.turns[0]}
        return Prompt.model_validate(about)


def load_scripts(path: Path | None = None) -> list[Script]:
    """The scripts in a file, by default the shipped ones. Columns that a script does not have are passed over.

    Raises:
        FileError: no such file, or a row that is no script.
    """
    if path is None:
        with as_file(files("demur.shipped") / "prompts" / "crescendo.jsonl") as shipped:
            return load_scripts(shipped)
    return read_rows(Script, path, "id, turns and label")


def pairs_of(scripts: Sequence[Script], n: int | None) -> list[Script]:
    """An even sample of so many harmful scripts, each with its benign twins; all scripts without a number."""
    harmful = [s for s in scripts if s.label == "harmful"]
    if n is None or n >= len(harmful):
        return list(scripts)
    kept = evenly(harmful, n)
    twins = {s.pair for s in kept if s.pair}
    return [s for s in scripts if s in kept or (s.label == "benign" and s.pair in twins)]


def converse(target: Target, policies: Sequence[Policy], scripts: Sequence[Script]) -> Conversations:
    """Plays every script under every policy, then answers the controls.

    Raises:
        PromptError: a conversation that has grown beyond the context.
    """
    last, earlier = [], []
    for policy in policies:
        history: dict[str, tuple[Message, ...]] = {s.id: () for s in scripts}
        for k in range(max(len(s.turns) for s in scripts)):
            on = [s for s in scripts if k < len(s.turns)]
            rows = [asked(s.row, (*history[s.id], Message(role="user", content=s.turns[k]))) for s in on]
            for s, t in zip(on, target.answer(policy, f"turn {k + 1}", rows), strict=True):
                history[s.id] = said(t)
                (last if k == len(s.turns) - 1 else earlier).append(t)
    tries = {s.id: len(s.turns) for s in scripts}
    return with_controls(target, policies, [named(t) for t in last], earlier, tries)


def named(t: Transcript) -> Transcript:
    """A last reply, as one of the attack's set."""
    return t.model_copy(update={"set": NAME})
