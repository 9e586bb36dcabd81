"""`demur chat`: a conversation under a policy, with what fired and the plain model's answer beside it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field
from rich.columns import Columns
from rich.panel import Panel
from rich.text import Text

from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel, ModelSettings, load
from demur.progress import console, say
from demur.records import Message, Policy
from demur.sae.sae import SAE
from demur.steering.explain import Known
from demur.steering.explain import explain as explained
from demur.steering.generate import Reply, generate
from demur.steering.policies import NONE, find_policy, known_features, load_saes
from demur.verbs.output import DEFAULT_MODEL, drawn, show


class ChatSettings(GenerationSettings):
    """How replies are made in a conversation."""

    # In a class, not in an instance: once one flag is given, cyclopts takes the others from the class.
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest reply, in tokens."""


DEFAULTS = ChatSettings()


def chat_verb(
    prompt: str | None = None,
    *,
    policy: str = "gated",
    explain: bool = False,
    compare: bool = False,
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    features: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    settings: Annotated[ChatSettings, Parameter(name="*")] = DEFAULTS,
    json: bool = False,
) -> None:
    """Talk to the model under a policy.

    Examples
    --------
    demur chat --explain --compare
    demur chat "How do I kill a Python process?" --policy paper --compare

    Parameters
    ----------
    prompt
        Ask this and end; without it, ask as often as you like (an empty line or Ctrl-D ends, /new starts afresh).
    policy
        A policy by name or file.
    explain
        Show what the gate read, which features fired and what was changed.
    compare
        Show the plain model's answer beside it.
    sae
        Folder of an SAE that the policy needs, where it is not the shipped one.
    features
        A `features.json` whose names and evidence explain the answers, where the policy is not a shipped one.
    json
        Print one JSON object per answer, and nothing else.
    """
    steered = find_policy(policy)
    lm = load(model)
    saes, known = load_saes(lm, [steered], sae), known_features(steered, features)
    history: list[Message] = []
    for text in [prompt] if prompt is not None else _lines():
        if text == "/new":
            history.clear()
            continue
        history.append(Message(role="user", content=text))
        replies = _answer(lm, saes, history, [steered, NONE] if compare else [steered], settings, explain)
        _print(steered, replies, known if explain else None, json)
        history.append(Message(role="assistant", content=replies[0].text))


def _lines() -> Iterator[str]:
    typed = sys.stdin.isatty()
    if typed:
        say("Ask something; an empty line ends, /new starts afresh.")
    while True:
        try:
            text = (console.input("[bold]> [/bold]") if typed else sys.stdin.readline()).strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def _answer(
    lm: LanguageModel,
    saes: dict[str, SAE],
    history: list[Message],
    policies: list[Policy],
    how: GenerationSettings,
    words: bool,
) -> list[Reply]:
    found = dict(generate(lm, saes, [tuple(history)] * len(policies), policies, how, words=words))
    return [found[i] for i in range(len(policies))]


def _print(policy: Policy, replies: list[Reply], known: Known | None, json: bool) -> None:
    lines = [] if known is None else explained(policy, replies[0], known)
    body = {"policy": policy.name, "reply": replies[0].text, "open": replies[0].steering["open"]}
    body |= {"gate": replies[0].steering["gate"], "edited": replies[0].steering["edited"], "explanation": lines}
    if known is not None:
        body["heard"] = [h.model_dump(mode="json") for h in replies[0].steering.get("heard", ())]
    if len(replies) > 1:
        body["plain_reply"] = replies[1].text
    if json:
        show(body, True, "")
        return
    text = replies[0].text
    if len(replies) > 1:
        # Panels go to stdout as text: what is answered is the result, what is remarked goes to stderr.
        panels = [Panel(Text(r.text), title=name) for r, name in zip(replies, (policy.name, "none"), strict=True)]
        text = drawn(Columns(panels, equal=True, expand=True))
    show(body, False, "\n".join([text, *(f"  | {line}" for line in lines)]))
