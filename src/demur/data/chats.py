"""Chats: harmless at every turn, and what a request may follow upon.

What is said late in a chat is short and leans on what was said before ("No, just the one."), so a gate that never met it
takes it for anything. Harmless chats, cut at one of the user's turns, are plain prompts; behind the beginning of one,
harmful and harmless requests alike are put, so that the history says nothing of what is asked; and of our own there are
chats where it does.

A file of chats is JSONL with `messages`, gzipped or not; those that a user does not begin are passed over. Files from
elsewhere are split by what they begin with: a quarter of them is for validation.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path

from demur.config import locate
from demur.data.corpus import documents
from demur.data.prompts import Split
from demur.data.wrappers import WRAPPED
from demur.errors import FileError, PromptError
from demur.records import LIKE_HARM, Message, Prompt, PromptSet, evenly_of, parse

CHATS = "chats"
"""Source of harmless chats, and the stratum of these and of plain prompts that follow upon one."""
FOLLOWING = "following"
"""Source of prompts that follow upon the beginning of a chat."""
LONGEST, LONGEST_HISTORY = 1600, 600
"""Characters of a chat, and of one before a request: enough to lean on, and read in reasonable time."""

Chat = tuple[Message, ...]


def load_chats(path: Path) -> list[Chat]:
    """The chats of a file that the user begins.

    Raises:
        FileError: no such file, or not JSONL.
        PromptError: no such chat in it.
    """
    rows = [row for row in documents(locate(path)) if not isinstance(row, str) and row[0].get("role") == "user"]
    if not rows:
        raise PromptError(f"{path} has no chats (`messages`) that a user begins; give others.")
    return [tuple(parse(Message, m, path, FileError) for m in row) for row in rows]


def shipped_chats(split: Split) -> list[Chat]:
    """The chats that we wrote."""
    with as_file(files("demur.shipped") / "chats" / f"{split}.jsonl") as path:
        return load_chats(path)


def escalations(split: Split) -> PromptSet:
    """Chats that we wrote, of training and validation: they end in a harmful request, mostly in words that lean on what was
    said before; and their twins, which begin alike and stay harmless."""
    with as_file(files("demur.shipped") / "chats" / f"escalations-{split}.jsonl") as path:
        return PromptSet.load(path)


def chats_for(split: Split, paths: Sequence[Path] = ()) -> list[list[Chat]]:
    """The shipped chats and those of files, a list each, of one split.

    Raises:
        FileError, PromptError: a file that cannot be used.
    """
    theirs = [[chat for chat in load_chats(path) if _split_of(chat) == split] for path in paths]
    return [shipped_chats(split), *(chats for chats in theirs if chats)]


def _split_of(chat: Chat) -> Split:
    # By the first words alone: several chats may begin with the same ones.
    return "validation" if int(_digest(chat[:1]), 16) % 4 == 0 else "train"


def _digest(chat: Chat) -> str:
    return hashlib.sha256("\n".join(m.content for m in chat).encode()).hexdigest()


def as_prompts(chats: Sequence[Chat], turns: int | None = None) -> list[Prompt]:
    """Harmless prompts: chats up to each of the user's turns, or to so many of these, drawn."""
    draw, rows = random.Random(0), []
    for chat in chats:
        ends = [i for i, m in enumerate(chat) if m.role == "user" and _length(chat[: i + 1]) <= LONGEST]
        for end in sorted(draw.sample(ends, min(len(ends), turns or len(ends)))):
            rows.append(
                Prompt(
                    id=f"{CHATS}/{_digest(chat)[:8]}-{end}",
                    messages=chat[: end + 1],
                    label="benign",
                    kind="plain",
                    category="chat",
                    source=CHATS,
                    extra={"stratum": CHATS},
                )
            )
    return rows


def chat_prompts(split: Split) -> PromptSet:
    """The chats that we wrote, up to each of the user's turns."""
    return PromptSet(name=CHATS, rows=tuple(as_prompts(shipped_chats(split))))


def with_chats(
    prompts: PromptSet,
    split: Split,
    paths: Sequence[Path],
    share: float,
    fits: Callable[[Sequence[Message]], bool] = lambda _: True,
) -> PromptSet:
    """The prompts and, behind them, conversations that fit the model: about `share` times as many that are made of our chats
    and those of files, and our escalations.

    Raises:
        FileError, PromptError: a file of chats that cannot be used.
    """
    rows = (*conversations(prompts, chats_for(split, paths), share), *escalations(split).rows)
    return prompts.model_copy(update={"rows": (*prompts.rows, *(row for row in rows if fits(row.conversation)))})


def conversations(prompts: PromptSet, chats: Sequence[Sequence[Chat]], share: float) -> list[Prompt]:
    """About `share` times as many conversations as there are prompts, in equal parts: chats, and harmful prompts, ones that
    look it, and plain ones behind the beginning of a chat.

    Each of the lists of chats has an equal share. Prompts that are wrapped, or conversations already, follow upon none.
    """
    draw = random.Random(0)
    each = max(1, round(share * len(prompts.rows) / 4))
    rows = evenly_of([draw.sample(some, len(some)) for some in (as_prompts(part, 1) for part in chats) if some], each)
    before = [[h for chat in part if (h := _history(chat, draw))] for part in chats]
    before = [part for part in before if part]
    for wanted in ("harmful", "lookalike", "plain") if before else ():
        groups: dict[str, list[Prompt]] = {}
        for row in prompts.rows:
            if len(row.conversation) == 1 and row.source != WRAPPED and _sort(row) == wanted:
                groups.setdefault(row.source or "", []).append(row)
        for i, row in enumerate(evenly_of(list(groups.values()), each)):
            rows.append(_behind(draw.choice(before[i % len(before)]), row, plain=wanted == "plain"))
    return list({row.id: row for row in rows}.values())


def _sort(row: Prompt) -> str:
    # What sort of prompt a row is, as far as conversations are concerned.
    if row.label == "harmful":
        return "harmful"
    return "lookalike" if row.kind in LIKE_HARM else "plain"


def _history(chat: Chat, draw: random.Random) -> Chat | None:
    # A chat's beginning, up to a reply; one that is not too long, if there is any.
    ends = [i + 1 for i, m in enumerate(chat) if m.role == "assistant" and _length(chat[: i + 1]) <= LONGEST_HISTORY]
    return chat[: draw.choice(ends)] if ends else None


def _behind(history: Chat, row: Prompt, plain: bool) -> Prompt:
    asked = row.conversation[-1]
    changed = {
        "id": f"{FOLLOWING}/{row.id}",
        "prompt": None,
        "messages": (*history, asked),
        "goal": row.goal or asked.content,
        "source": FOLLOWING,
        "extra": row.extra | ({"stratum": CHATS} if plain else {}),
    }
    return row.model_copy(update=changed)


def _length(chat: Chat) -> int:
    return sum(len(m.content) for m in chat)
