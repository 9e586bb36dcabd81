"""The process that takes requests: which policy each is for, whose its prompt's tokens are, and what became of it."""

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import nn

from demur.errors import PolicyError
from demur.models.chat import bare_roles, label
from demur.models.load import LanguageModel
from demur.records import Fired, Message
from demur.server.dialect import Wish
from demur.server.explaining import account
from demur.server.offer import Entry, Offer, Picked, stamped
from demur.server.vllm.fitness import check_engine, check_policies
from demur.server.vllm.options import Options
from demur.server.vllm.watching import served_name
from demur.steering.policies import find_policy, known_features

log = logging.getLogger("demur.server")
TELLERS = {"system": "system", "developer": "system", "assistant": "assistant"}
"""Who speaks in a conversation; what anybody else says, a tool for instance, is read as the user's."""


class Menu(Offer):
    """What is on offer, where there is no model to check it with: the processes that run the model have done so."""

    def _read(self, source: str) -> Entry:
        policy = find_policy(source)
        return Entry(source, policy, known_features(policy), stamped(source))

    def told(self, model: str, wish: Wish) -> dict[str, Any]:
        """What a request is for, by its model id and what it says beside it, as a `Wish`.

        Raises:
            NotOfferedError: there is none, or the operator does not allow it.
            PolicyError: a kind of harm that the policy does not tell apart.
        """
        picked = self.pick(model, wish.policy, wish.level, wish.kinds)
        return {
            "policy": wish.policy or self._parsed(model)[0],
            "level": picked.level,
            "kinds": dict(wish.kinds),
            "explain": wish.explain,
        }


class Asking:
    """What the process that takes requests knows of policies."""

    def __init__(self, options: Options, config: Any, tokenizer: Any) -> None:
        """For an engine of these settings (a `VllmConfig`).

        Raises:
            SettingsError: settings past which a policy would not hold.
            PolicyError, FileError: a policy that cannot be read, or that vLLM cannot be made to follow.
        """
        check_engine(config)
        self.lm = without_model(served_name(config), tokenizer)
        self.menu = Menu(self.lm, {}, options.policies, options.card, options.saes)
        check_policies(
            (e.policy for e in self.menu.entries.values()), bool(config.scheduler_config.enable_chunked_prefill)
        )

    def picked(self, told: Mapping[str, Any]) -> Picked:
        """The policy of a request that was ordered."""
        return self.menu.pick(self.lm.name, told["policy"], told["level"], told["kinds"])

    def order(self, params: Any, ids: Sequence[int], roles: Sequence[int] | None) -> str | None:
        """Puts into a request's own sampling parameters what the engine has to know; gives the salt of its cache.

        A prompt whose keys and values came from the prefix cache would not pass the gate, and what is edited must not be
        taken for the plain model's: such a request reads no cached prefix and leaves none that another could read.

        Raises:
            PolicyError: the policy is not on offer.
        """
        told = self.menu.told(self.lm.name, wished((params.extra_args or {}).get("demur")))
        told["steered"] = not self.picked(told).policy.is_plain
        if told["steered"]:
            told["roles"] = list(roles) if roles is not None else bare_roles(self.lm, ids)
        params.extra_args = {**(params.extra_args or {}), "demur": told}
        if not told["steered"]:
            return None
        params.skip_reading_prefix_cache = True
        return f"demur-{secrets.token_hex(16)}"

    def roles(self, conversation: Sequence[Mapping[str, Any]], text: str, ids: Sequence[int]) -> list[int]:
        """Whose each token of a rendered conversation is; where that cannot be told, all of it is read."""
        messages = [Message(role=TELLERS.get(m["role"], "user"), content=_text(m.get("content"))) for m in conversation]  # type: ignore[arg-type]
        found, roles = label(self.lm, text, messages, special_tokens=False)
        if list(found) != list(ids):
            log.warning("a prompt is not its conversation in the template; its gate reads all of it.")
            return bare_roles(self.lm, ids)
        return roles

    def accounts(
        self, wish: Mapping[str, Any], choices: Sequence[tuple[str, int, str]], seen: Sequence[dict | None]
    ) -> list[dict]:
        """What is told of each choice: its text, tokens and finish, and what the engine's session reported.

        Nothing where the session does not know one of them any more.
        """
        picked = self.picked(wish)
        plain = {"gate": None, "open": False, "edited": 0, "fired": []}
        found = seen if wish["steered"] else [plain] * len(choices)
        told = []
        for (text, tokens, finish), of_it in zip(choices, found, strict=True):
            if of_it is None:
                log.warning("an answer goes without its account: more have ended unasked than rows are kept for.")
                return []
            of_it = of_it | {"fired": tuple(Fired.model_validate(f) for f in of_it["fired"])}
            told.append(account(picked, text, tokens, finish, of_it).model_dump(mode="json"))
        return told


def without_model(name: str, tokenizer: Any = None) -> LanguageModel:
    """What is known of a model that runs elsewhere: its name, and how it reads text."""
    return LanguageModel(name, None, tokenizer, nn.ModuleList(), d_model=0, context=0, hash="")


def wished(told: Any) -> Wish:
    """What a request says under `demur`.

    Raises:
        PolicyError: it cannot be read.
    """
    if isinstance(told, str) and not told.lstrip().startswith("{"):
        policy, _, at = told.partition(":")
        level, *kinds = at.split(",")
        pairs = (kind.partition("=") for kind in kinds)
        by_kind = {name: value for name, _, value in pairs}
        told = {"policy": policy or None, "level": level or None, "kinds": by_kind}
    try:
        return Wish.model_validate(json.loads(told) if isinstance(told, str) else told or {})
    except (ValidationError, ValueError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise PolicyError(
            f"demur = {str(told)[:120]!r} cannot be read ({said}); "
            'write "gated:strict", or {"policy": "gated", "level": "strict", "kinds": {}}.'
        ) from error


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text") or "" for part in parts if isinstance(part, Mapping))
