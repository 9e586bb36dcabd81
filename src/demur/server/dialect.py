"""OpenAI's dialect: what requests and answers look like, and what ours have besides (`demur`).

Fields that we do not know are passed over, as clients send more every year; those that would change the answer and that
we cannot honour are refused.
"""

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from demur.errors import PromptError
from demur.records import Message
from demur.records.policy import LevelName
from demur.server.explaining import Account

TOP = 20
"""Most likely tokens that may be asked for at each place."""


class Given(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


class Wish(BaseModel):
    """What a request wants of the policy, within what the operator allows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    policy: str | None = None
    level: LevelName | None = None
    kinds: dict[str, LevelName] = {}
    """Levels by kind of harm."""
    explain: bool = True
    """Put `demur` into the answer."""


class StreamOptions(Given):
    """How an answer is streamed."""

    include_usage: bool = False


class Part(Given):
    """A part of a message."""

    type: str
    text: str | None = None


class Turn(Given):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def message(self) -> Message:
        """As the rest of the house has it.

        Raises:
            PromptError: a part that is not text.
        """
        if isinstance(self.content, str):
            text = self.content
        else:
            if other := [p.type for p in self.content if p.type != "text" or p.text is None]:
                raise PromptError(f"a message has a part of type {other[0]!r}; this model reads text alone.")
            text = "".join(p.text or "" for p in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class Asking(Given):
    """What both ways of asking have."""

    model: str
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0, the default, takes the likeliest token each time, as `demur chat` does."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """Most likely tokens that are sampled from (50 unless told; 0: all); not OpenAI's, but many servers'."""
    n: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[int, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """Go on to `max_tokens`; not OpenAI's, for measuring."""
    demur: Wish = Wish()

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the reply ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class ChatRequest(Asking):
    """`POST /v1/chat/completions`."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=TOP)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _what_we_have(self) -> "ChatRequest":
        if self.tools or self.functions:
            raise ValueError("tools are not supported; leave `tools` out")
        if self.response_format and self.response_format.get("type", "text") != "text":
            raise ValueError("only text is written; leave `response_format` out")
        if self.modalities and self.modalities != ["text"]:
            raise ValueError("only text is written; leave `modalities` out")
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be at least 1")
        return self


class TextRequest(Asking):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]] = "\n"
    """Text or token ids, one or several."""
    echo: bool = False
    """Put the prompt before the reply; with `logprobs`, its tokens are scored too."""
    logprobs: int | None = Field(default=None, ge=0, le=TOP)
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _what_we_have(self) -> "TextRequest":
        if self.suffix:
            raise ValueError("suffix is not supported; leave it out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported beyond n; leave it out")
        if self.echo and self.stream and self.logprobs is not None:
            raise ValueError("echo with logprobs is not streamed; leave `stream` out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token, and how likely it was, in nats."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The token that came."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    """How likely the tokens of a choice were."""

    content: list[TokenLogprob]
    refusal: None = None


class Said(BaseModel):
    """The reply."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One reply."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"]
    demur: Account | None = None
    """Only where there are several choices."""


class ChatAnswer(BaseModel):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    demur: Account | None = None
    """Of the first choice."""


class TextLogprobs(BaseModel):
    """How likely the tokens of a choice were, as the older API has it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One reply."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"]
    demur: Account | None = None


class TextAnswer(BaseModel):
    """The answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[TextChoice]
    usage: Usage
    system_fingerprint: str
    demur: Account | None = None


class Model(BaseModel):
    """One model id."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["demur"] = "demur"
    demur: dict[str, str]
    """Policy, its hash, and the level."""


class Models(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]
