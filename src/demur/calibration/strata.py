"""Strata of benign prompts: each has a false-refusal budget of its own, so that no large one can hide a small one."""

from collections.abc import Callable, Sequence
from pathlib import Path

from demur.data.chats import with_chats
from demur.data.wrappers import shipped_wrappers, with_wrapped
from demur.errors import PromptError
from demur.records import LIKE_HARM, Message, Prompt, PromptSet

PLAIN_STRATA = ("chat", "mathematics", "code", "fiction", "advice")
"""Kinds of plain prompt that are strata; plain ones of no such category are `plain`."""
ENOUGH = 200
"""Harmless prompts of a stratum made here that are enough for a budget of one in two hundred."""


def stratum(row: Prompt) -> str:
    """Which stratum a benign row belongs to: `stratum` in its own columns, its kind, or what a plain one is about."""
    if named := row.extra.get("stratum"):
        return str(named)
    if row.kind not in (None, "plain"):
        return row.kind
    return row.category if row.category in PLAIN_STRATA else "plain"


def strata(prompts: PromptSet) -> dict[str, list[int]]:
    """The benign rows by stratum, as numbers of rows, the largest stratum first.

    Raises:
        PromptError: no benign row.
    """
    found: dict[str, list[int]] = {}
    for i, row in enumerate(prompts.rows):
        if row.label == "benign":
            found.setdefault(stratum(row), []).append(i)
    if not found:
        raise PromptError(f"{prompts.name} has no benign prompts, so no false-refusal budget can be kept; give some.")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def with_a_wrapped_stratum(
    prompts: PromptSet, share: float, fits: Callable[[Sequence[Message]], bool] = lambda _: True
) -> PromptSet:
    """The prompts and, for each harmful or plain one, `share` wrapped ones that fit the model; without, where the stratum
    would be small.
    """
    bare = [row for row in prompts.rows if row.label == "harmful" or stratum(row) not in LIKE_HARM]
    if share * len(bare) / 2 < ENOUGH:
        return prompts
    found = with_wrapped(prompts.model_copy(update={"rows": tuple(bare)}), shipped_wrappers("validation"), share, fits)
    return prompts.model_copy(update={"rows": (*prompts.rows, *found.rows[len(bare) :])})


def with_a_chat_stratum(
    prompts: PromptSet,
    share: float,
    paths: Sequence[Path] = (),
    fits: Callable[[Sequence[Message]], bool] = lambda _: True,
) -> PromptSet:
    """The prompts and `share` times as many conversations that fit the model; without, where the stratum would be small.

    Raises:
        FileError, PromptError: a file of chats that cannot be used.
    """
    if share * len(prompts.rows) / 4 < ENOUGH:
        return prompts
    return with_chats(prompts, "validation", paths, share, fits)


def harmful_by_source(prompts: PromptSet) -> dict[str, list[int]]:
    """The harmful rows by where they come from.

    Raises:
        PromptError: no harmful row.
    """
    found: dict[str, list[int]] = {}
    for i, row in enumerate(prompts.rows):
        if row.label == "harmful":
            found.setdefault(row.source or prompts.name, []).append(i)
    if not found:
        raise PromptError(f"{prompts.name} has no harmful prompts, so nothing can be tried on them; give some.")
    return found
