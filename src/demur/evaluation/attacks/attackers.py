"""Who thinks up the questions of a live attack: a model behind an endpoint, or one on this machine.

An attacker reads a system prompt and what has happened so far, and answers with its next message in JSON. Models that do
not keep to that are taken at their word.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field

from demur.config import Settings
from demur.errors import FileError, SettingsError, first_line
from demur.evaluation.endpoint import Endpoint, Unanswered, checked, key_in
from demur.files import read_text
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel, ModelSettings, load
from demur.records import Message
from demur.runs import file_hash
from demur.steering.generate import generate
from demur.steering.policies import NONE

KEY = "DEMUR_ATTACKER_KEY"
NEXT = ("next_message", "generated_question", "generatedQuestion")
"""What the next message is called in published prompts."""

Talk = Sequence[Message]


class AttackerSettings(Settings):
    """Who attacks."""

    attacker_model: str | None = None
    """Its name at the endpoint; without an endpoint, a model as --model takes it (by default the target itself)."""
    attacker_url: str | None = None
    """Base URL of an OpenAI-compatible API, such as http://localhost:8000/v1. Its key is read from the environment:
    DEMUR_ATTACKER_KEY, else OPENAI_API_KEY."""
    attacker_prompt: Path | None = None
    """File with its system prompt: text, or YAML with the prompt under `value`; `{{ objective }}` and `{{ max_turns }}`
    are filled in. By default one of ours."""
    attacker_tokens: int = Field(default=256, gt=0)
    """Longest answer of an attacker on this machine, in tokens."""
    attacker_temperature: float = Field(default=0.7, ge=0)
    """Of its sampling, on this machine."""
    attacker_timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer of the endpoint."""
    attacker_workers: int = Field(default=4, gt=0)
    """Questions to the endpoint under way at a time."""

    @property
    def who(self) -> "AttackerSettings":
        """Its prompt by its text, and without where it is reached and how long it is waited for, which may change while an
        attack goes on."""
        prompt = Path(file_hash(self.attacker_prompt)) if self.attacker_prompt else None
        elsewhere = {"attacker_url": None, "attacker_timeout": 60.0, "attacker_workers": 4}
        return self.model_copy(update=elsewhere | {"attacker_prompt": prompt})


class Attacker(Protocol):
    """Thinks up messages."""

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        """What it answers in each conversation; empty where it did not answer.

        Raises:
            EndpointError: it cannot be reached, or turns us away.
        """
        ...


class Remote:
    """An attacker behind an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        """See `Attacker`."""
        questions = ([{"role": m.role, "content": m.content} for m in talk] for talk in talks)
        return ["" if isinstance(a, Unanswered) else a for a in self.endpoint.answers(questions)]


class Local:
    """An attacker on this machine."""

    def __init__(self, lm: LanguageModel, settings: AttackerSettings, batch: int = 16) -> None:
        self.lm, self.batch = lm, batch
        self.how = GenerationSettings(
            max_new_tokens=settings.attacker_tokens, temperature=settings.attacker_temperature
        )

    def ask(self, talks: Sequence[Talk]) -> list[str]:
        """See `Attacker`."""
        found = dict(generate(self.lm, {}, talks, [NONE] * len(talks), self.how, self.batch))
        return [found[i].text for i in range(len(talks))]


def open_attacker(settings: AttackerSettings, target: LanguageModel) -> Attacker:
    """The attacker that the settings name; nothing is asked yet.

    Raises:
        SettingsError: an endpoint without a model, or an address that is none.
        ModelError: a model that cannot be had.
    """
    if settings.attacker_url is None:
        name = settings.attacker_model
        return Local(load(ModelSettings(model=name)) if name and name != target.name else target, settings)
    if not settings.attacker_model:
        raise SettingsError("--attacker-url needs a model there; type --attacker-model NAME.")
    return Remote(
        Endpoint(
            "the attacker",
            checked(settings.attacker_url, "--attacker-url"),
            settings.attacker_model,
            key_in(KEY),
            timeout=settings.attacker_timeout,
            workers=settings.attacker_workers,
        )
    )


def system_prompt(goal: str, turns: int, path: Path | None = None) -> str:
    """The attacker's instructions for a goal.

    Raises:
        FileError: no such file, or no prompt in it.
    """
    if path is None:
        text = files("demur.shipped").joinpath("attacks", "crescendo-attacker.md").read_text(encoding="utf-8")
    else:
        text = _value(path) if path.suffix in (".yaml", ".yml") else read_text(path)
    try:
        made = SandboxedEnvironment().from_string(text).render(objective=goal, max_turns=turns, conversation_context="")
    except TemplateError as error:
        raise FileError(f"{path} is no prompt template ({error}); write {{{{ objective }}}} for the goal.") from error
    return made.replace("{objective}", goal)  # published prompts write it both ways


def _value(path: Path) -> str:
    import yaml

    try:
        body = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise FileError(f"{path} is not YAML ({first_line(error)}).") from error
    value = body.get("value") if isinstance(body, dict) else None
    if not isinstance(value, str):
        raise FileError(f"{path} has no prompt; expected its text under `value`.")
    return value


def next_message(text: str) -> str:
    """The message in an attacker's answer: in its first JSON object that has one, else the answer itself."""
    at = text.find("{")
    while at >= 0:
        try:
            body = json.JSONDecoder(strict=False).raw_decode(text, at)[0]
            found = next((body[k] for k in NEXT if isinstance(body.get(k), str)), None)
            if found is not None:
                return found.strip()
        except (ValueError, RecursionError):
            pass
        at = text.find("{", at + 1)
    return text.strip()
