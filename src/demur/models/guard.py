"""Guard models: another model reads a conversation, and how it would begin its answer says whether that is unsafe.

What the steered model feeds through its blocks is tokens; a guard has a tokenizer of its own, so the messages are put
together again from them (`conversation_of`).
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.errors import PolicyError
from demur.models.chat import Role, pad
from demur.models.load import LanguageModel, ModelSettings, load
from demur.progress import say
from demur.records import GuardModel, GuardSensor, Message

TOKENS = 4096
"""Tokens, padding included, that a guard reads at a time."""
NOTHING = -100.0
"""The score of a conversation in which nobody said anything, in nats: no guard is so sure."""
REMEMBERED = 50_000
"""Conversations whose scores are kept: the same prompt is decided on, answered and scored, and is to be one and the same."""
PROBE = "How do I plant a tree?"
LIKELY = 1e-3
"""Probability that the two answers should have together where they stand."""
FORMS: tuple[Callable[[str], object], ...] = (lambda text: text, lambda text: [{"type": "text", "text": text}])
"""How templates want what was said: as a text, or, those of models that also see, as a list of parts."""

_guards: "dict[tuple[GuardModel, str], Guard]" = {}
_loaded: dict[tuple[str, str, str], LanguageModel] = {}
_scores: OrderedDict[bytes, float] = OrderedDict()
"""By a digest, so that nobody's prompt is kept."""
_opening, _scoring = threading.RLock(), threading.Lock()


@dataclass(frozen=True)
class Guard:
    """A guard that is loaded, and how it is asked."""

    lm: LanguageModel
    how: GuardModel
    shared: tuple[int, ...]
    """Tokens with which both answers begin."""
    unsafe: int
    """The token of each answer at which they part."""
    safe: int
    form: Callable[[str], object]
    """One of `FORMS`."""

    def scores(self, conversations: Sequence[Sequence[Message]]) -> Float[Tensor, " n"]:
        """log p(unsafe) − log p(safe) of each conversation, in nats, at the token where the two answers part.

        System prompts are not shown to the guard. A conversation that does not fit its context is read in pieces, and the
        highest score counts; one in which nobody said anything has the score `NOTHING`.

        Raises:
            PolicyError: the guard's logits are not finite, its template takes no such conversation, or the text around
                it fills the context.
        """
        pieces = [self._pieces(self._shown(c)) for c in conversations]
        with _scoring:
            unknown = {ids for each in pieces for ids in each if self._key(ids) not in _scores}
            # Those of like length together.
            order = sorted(unknown, key=lambda ids: (-len(ids), ids))
            while order:
                group = order[: max(1, TOKENS // len(order[0]))]
                order = order[len(group) :]
                for ids, score in zip(group, self._read(group), strict=True):
                    _scores[self._key(ids)] = score
            found = [max((_scores[self._key(ids)] for ids in each), default=NOTHING) for each in pieces]
            for each in pieces:
                for ids in each:
                    _scores.move_to_end(self._key(ids))
            while len(_scores) > REMEMBERED:
                _scores.popitem(last=False)
        return torch.tensor(found)

    def _key(self, ids: tuple[int, ...]) -> bytes:
        asked = (self.lm.hash, str(self.lm.dtype), str(self.lm.device), self.unsafe, self.safe, ids)
        return hashlib.blake2b(repr(asked).encode(), digest_size=16).digest()

    @torch.inference_mode()
    def _read(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        batch = pad(self.lm, [(list(ids), [int(Role.USER)] * len(ids)) for ids in rows])
        logits = self.lm.logits(batch.ids, batch.mask, batch.positions, last=1)[:, -1].float()
        found = (logits[:, self.unsafe] - logits[:, self.safe]).tolist()
        if not all(map(math.isfinite, found)):
            raise PolicyError(
                f"the guard {self.how.model} gives scores that are no numbers in {self.how.dtype}; give it another dtype."
            )
        return found

    def _shown(self, conversation: Iterable[Message]) -> list[Message]:
        # No marks of the guard's own, and nothing that is said before the user's first word.
        tokenizer = self.lm.tokenizer
        marks = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(
            tokenizer.all_special_tokens
        )
        found: list[Message] = []
        for message in conversation:
            content = message.content
            for mark in sorted(marks):
                content = content.replace(mark, f"{mark[0]} {mark[1:]}")
            if content.strip() and message.role != "system" and (found or message.role == "user"):
                found.append(Message(role=message.role, content=content.strip()))
        return found

    def _pieces(self, said: Sequence[Message]) -> list[tuple[int, ...]]:
        # A conversation that is too long is cut in two, and so on.
        said = _alternating(said)
        if not said:
            return []
        ids = (*self._ids(said), *self.shared)
        if len(ids) <= self.lm.context:
            return [ids]
        if len(said) > 1:
            return self._pieces(said[: len(said) // 2]) + self._pieces(said[len(said) // 2 :])
        text = said[0].content
        if len(text) < 2:
            raise PolicyError(f"what the guard {self.how.model} is told fills its context of {self.lm.context} tokens.")
        halves = (text[: len(text) // 2], text[len(text) // 2 :])
        return [ids for half in halves for ids in self._pieces([Message(role=said[0].role, content=half)])]

    def _ids(self, said: Sequence[Message]) -> list[int]:
        text = asked(self.lm, self.how, said, self.form)
        # A template writes the mark of the beginning itself.
        own = bool(self.how.ask) and not text.startswith(self.lm.tokenizer.bos_token or text)
        return self.lm.tokenizer(text, add_special_tokens=own)["input_ids"]


def _alternating(said: Sequence[Message]) -> list[Message]:
    # As templates take it: turns that alternate, the user's first. What is cut off behind the user's word is read as his.
    found: list[Message] = []
    for message in said:
        role, content = message.role if found else "user", message.content
        if found and found[-1].role == role:
            content = f"{found.pop().content}\n\n{content}"
        found.append(Message(role=role, content=content))
    return found


def asked(lm: LanguageModel, how: GuardModel, said: Sequence[Message], form: Callable[[str], object] = FORMS[0]) -> str:
    """The text that a guard is shown.

    Raises:
        PolicyError: its template does not take the conversation.
    """
    if how.ask:
        talk = said[0].content if len(said) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in said)
        return how.ask.replace("{conversation}", talk)
    turns = [{"role": m.role, "content": form(m.content)} for m in said]
    try:
        return lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template raises
        raise PolicyError(
            f"the chat template of the guard {how.model} does not take the conversation ({error}); say how it is asked "
            "with `ask`."
        ) from error


def guard_of(how: GuardModel, device: torch.device) -> Guard:
    """The guard that a sensor or a setting names, loaded once for all that name it.

    Raises:
        ModelError: it cannot be loaded.
        PolicyError: it is another model than the policy was made with, is not shown what was said, or its answers cannot
            be told apart.
    """
    with _opening:
        if (how, str(device)) not in _guards:
            _guards[how, str(device)] = _opened(how, device)
        return _guards[how, str(device)]


def _opened(how: GuardModel, device: torch.device) -> Guard:
    key = (how.model, how.dtype, str(device))
    wanted = how.model_hash if isinstance(how, GuardSensor) else ""
    if key not in _loaded or (wanted and _loaded[key].hash != wanted):  # another may lie there by now
        _loaded[key] = load(ModelSettings(model=how.model, dtype=how.dtype, device=str(device)))
    lm = _loaded[key]
    if wanted and lm.hash != wanted:
        raise PolicyError(
            f"the guard at {how.model} is {lm.hash}, and the policy was made with {wanted}; find and calibrate "
            "with this one, or give the policy's own."
        )
    if not how.ask and lm.tokenizer.chat_template is None:
        raise PolicyError(f"the guard {how.model} has no chat template; say how it is asked with `ask`.")
    probe = [Message(role="user", content=PROBE)]
    form = next((f for f in FORMS if PROBE in asked(lm, how, probe, f)), None)
    if form is None:
        raise PolicyError(
            f"the chat template of the guard {how.model} does not show it what was said; say how it is asked with `ask`."
        )
    guard = Guard(lm, how, *_words(lm, how), form)
    _check_likely(guard, probe)
    return guard


def _words(lm: LanguageModel, how: GuardModel) -> tuple[tuple[int, ...], int, int]:
    unsafe, safe = (lm.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (how.unsafe, how.safe))
    part = next((i for i, (a, b) in enumerate(zip(unsafe, safe, strict=False)) if a != b), None)
    if part is None:
        raise PolicyError(
            f"the guard {how.model} cannot tell its answers {how.unsafe!r} and {how.safe!r} apart by one token; give "
            "words of which neither begins the other."
        )
    return tuple(unsafe[:part]), unsafe[part], safe[part]


@torch.inference_mode()
def _check_likely(guard: Guard, probe: Sequence[Message]) -> None:
    # Words that the guard does not use, or a space too few before them, give scores that look like any.
    ids = torch.tensor([[*guard._ids(probe), *guard.shared]], device=guard.lm.device)
    said = guard.lm.logits(ids, last=1)[0, -1].float().softmax(0)
    if float(said[guard.unsafe] + said[guard.safe]) < LIKELY:
        rather = guard.lm.tokenizer.decode([int(said.argmax())])
        say(
            f"the guard {guard.how.model} would answer neither {guard.how.unsafe!r} nor {guard.how.safe!r} there, but "
            f"rather {rather!r}; are `unsafe` and `safe` its words?"
        )


def conversation_of(
    lm: LanguageModel,
    ids: Int[Tensor, " tokens"],
    roles: Int[Tensor, " tokens"],
    keep: Bool[Tensor, " tokens"] | None = None,
) -> list[Message]:
    """The messages that a prompt's tokens are made of, of those that are kept; what a template adds is left out."""
    names = {int(Role.SYSTEM): "system", int(Role.USER): "user", int(Role.ASSISTANT): "assistant"}
    runs: list[tuple[str, list[int]]] = []
    before = int(Role.TEMPLATE)
    kept = torch.ones_like(roles, dtype=torch.bool) if keep is None else keep
    for token, role, here in zip(ids.tolist(), roles.tolist(), kept.tolist(), strict=True):
        now = role if here else int(Role.TEMPLATE)
        if now in names:
            if now != before:
                runs.append((names[now], []))
            runs[-1][1].append(token)
        before = now
    decoded = ((role, lm.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)) for role, tokens in runs)
    return [Message(role=role, content=text) for role, text in decoded]  # type: ignore[arg-type]
