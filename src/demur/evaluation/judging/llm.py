"""A language model as judge, behind any OpenAI-compatible endpoint (`POST BASE/chat/completions`).

It is asked with the prompt in `shipped/judge/llm-prompt.md` and answers in JSON, by a schema where the endpoint knows
`response_format`, else read out of its text. An answer that is no verdict gives outcome None, with its text in `why`.
When the endpoint is lost, the verdicts made so far stand and one JudgeError says so.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from demur.errors import EndpointError, JudgeError, SettingsError
from demur.evaluation import endpoint
from demur.evaluation.endpoint import Question, Unanswered
from demur.evaluation.judging.judges import JudgeSettings, conversation_of, verdict
from demur.records import Outcome, Transcript, Verdict

QUOTED = 300
"""Characters of a useless answer that are kept."""
KEY = "DEMUR_JUDGE_KEY"


class Answer(BaseModel):
    """What the model fills in. Without a schema it may leave out all but the outcome, and add what it likes."""

    outcome: Outcome
    harmful_prompt: bool | None = None
    harmful_reply: bool | None = None
    why: str = ""


SCHEMA = {
    "type": "object",
    "properties": {
        "outcome": {"type": "string", "enum": list(get_args(Outcome))},
        "harmful_prompt": {"type": "boolean"},
        "harmful_reply": {"type": "boolean"},
        "why": {"type": "string"},
    },
    "required": list(Answer.model_fields),
    "additionalProperties": False,
}
FORMS: tuple[dict[str, Any], ...] = (
    {
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    },
    {"temperature": 0},
    {},
)
"""What a question asks for beside an answer, the best first; an endpoint that knows none of it gets the last."""


class Endpoint:
    """The judge: a model at an endpoint."""

    name = "llm"
    keeps = True
    trained_on: frozenset[str] = frozenset()
    """Not known: what the model has read, its makers know."""

    def __init__(self, url: str, model: str, key: str | None = None, **how: Any) -> None:
        """See `endpoint.Endpoint`, which takes `how`."""
        self.asked = endpoint.Endpoint("the judge llm", url, model, key, forms=FORMS, **how)

    @classmethod
    def open(cls, settings: JudgeSettings) -> "Endpoint":
        """The endpoint that the settings name, with the key in the environment; nothing is asked yet.

        Raises:
            JudgeError: no address or no model is named, or the address is none.
        """
        if not settings.judge_url or not settings.judge_model:
            raise JudgeError(
                "the judge llm needs an endpoint and a model; type --judge-url http://HOST/v1 --judge-model NAME "
                f"(and set {KEY} where a key is needed)."
            )
        try:
            url = endpoint.checked(settings.judge_url, "--judge-url")
        except SettingsError as error:
            raise JudgeError(str(error)) from error
        how = {"timeout": settings.judge_timeout, "workers": settings.judge_workers}
        return cls(url, settings.judge_model, endpoint.key_in(KEY), **how)

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        """Asks about each transcript, a few at a time; see the module's docstring.

        Raises:
            JudgeError: the endpoint cannot be reached, turns us away, or leaves several in a row without an answer.
        """
        given = 0
        try:
            said = self.asked.answers(question(t) for t in transcripts)
            for transcript, answer in zip(transcripts, said, strict=True):
                yield self._verdict(transcript, answer)
                given += 1
        except EndpointError as error:
            kept = f" The {given} verdicts before stand." if given else ""
            raise JudgeError(
                f"{error} Check --judge-url, --judge-model and the key, then judge again.{kept}"
            ) from error

    def _verdict(self, transcript: Transcript, text: str | Unanswered) -> Verdict:
        if isinstance(text, Unanswered):
            return verdict(self.name, transcript, None, f"not answered: {text}")
        answer = answer_in(text)
        if answer is None:
            return verdict(self.name, transcript, None, f"not a verdict: {text[:QUOTED]!r}")
        harm = {"harmful_prompt": answer.harmful_prompt, "harmful_reply": answer.harmful_reply}
        return verdict(self.name, transcript, answer.outcome, answer.why, **harm)


def question(transcript: Transcript) -> Question:
    """The messages: the prompt of this repository, then request and reply, fenced in."""

    def fenced(name: str, text: str) -> str:
        # What is judged must not be able to close its own fence.
        return f"<{name}>\n{text.replace(f'</{name}>', f'< /{name}>')}\n</{name}>"

    content = fenced("request", conversation_of(transcript)) + "\n\n" + fenced("reply", transcript.reply)
    return [{"role": "system", "content": _prompt()}, {"role": "user", "content": content}]


@cache
def _prompt() -> str:
    return files("demur.shipped").joinpath("judge", "llm-prompt.md").read_text(encoding="utf-8")


def answer_in(text: str) -> Answer | None:
    """The first JSON object in the text that is an answer; models without a schema talk around it."""
    at = text.find("{")
    while at >= 0:
        try:
            return Answer.model_validate(json.JSONDecoder().raw_decode(text, at)[0])
        except (ValueError, ValidationError, RecursionError):
            at = text.find("{", at + 1)
    return None
