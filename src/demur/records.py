"""What travels between rooms: prompts, features, policies, transcripts, verdicts.

Each record is frozen, knows no unknown keys, and lives on disk as JSONL (rows), JSON (features) or TOML (policies), so
that every stage can be run again from files.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from demur.errors import DemurError, FileError, PolicyError, PromptError
from demur.files import read_json, read_jsonl, read_text, replacing, write_jsonl

Label = Literal["harmful", "benign"]
Outcome = Literal["refused", "partial", "deflected", "complied", "degenerate"]
Operation = Literal["clamp", "clamp_min", "scale", "add", "ablate"]
Positions = Literal["reply", "user", "prompt", "all"]
Pooling = Literal["max", "mean", "last"]


class Record(BaseModel):
    """A frozen value that accepts no key it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Record):
    """One request, or one conversation that ends with the user's turn, and what should become of it."""

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    label: Label
    kind: str | None = None
    """What sort of row this is: harmful, lookalike, offensive, plain, mathematics …"""
    category: str | None = None
    source: str | None = None
    licence: str | None = None
    pair: str | None = None
    """Joins a harmful request to its benign twin."""
    family: str | None = None
    """The attack family, for jailbreaks."""
    goal: str | None = None
    """The plain request an attack wraps."""
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_prompt_and_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.messages is not None and (not self.messages or self.messages[-1].role != "user"):
            raise ValueError("messages must end with the user's turn")
        return self

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The request as messages, whichever way it was given."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)


class SetOrigin(Record):
    """Where a named set came from and how its columns were read; of the whole set, also after `sample` and `where`."""

    name: str
    split: str
    where: str
    """A file or folder, or `hub:REPOSITORY@REVISION`."""
    columns: dict[str, dict[str, str]]
    """For each source: what became a prompt's field, and the column (or, in quotes, the word) it was made from."""
    hash: str
    """`PromptSet.hash` of the whole set."""
    n: int
    licence: str | None = None
    left_out: int = 0
    """Rows without a prompt or without a label that people agreed on."""
    moved: int = 0
    """Rows that the set calls harmful and the taxonomy merely offensive: label benign, kind offensive."""
    unknown: tuple[str, ...] = ()
    """Categories of the set that the taxonomy does not know."""


class PromptSet(Record):
    """Named rows with their labels; never empty."""

    name: str
    rows: tuple[Prompt, ...]
    origin: SetOrigin | None = None
    """Only of sets loaded by name."""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a JSONL file whose rows have `prompt` or `messages` and `label`; other columns are optional.

        Files whose columns are called otherwise, CSV and Parquet: `demur.data.tables`.

        Raises:
            FileError: no such file, or a line that is not a JSON object.
            PromptError: a row without what it needs, or no row at all.
        """
        return cls.of(Path(path).stem, read_jsonl(Path(path)), str(path))

    @classmethod
    def of(cls, name: str, raw: Iterable[dict[str, Any]], where: str) -> Self:
        """A set from rows with `prompt` or `messages` and `label`; `where` is named in errors.

        Columns that `Prompt` does not name go to `extra`; rows without an id get `NAME-NUMBER`.

        Raises:
            PromptError: a row without what it needs, or no row at all.
        """
        rows = []
        for number, row in enumerate(raw, 1):
            known = {k: v for k, v in row.items() if k in Prompt.model_fields and k != "extra" and v is not None}
            other = {k: v for k, v in row.items() if k not in Prompt.model_fields}
            known = {"id": f"{name}-{number}"} | known | {"extra": other | (row.get("extra") or {})}
            try:
                rows.append(Prompt.model_validate(known))
            except ValidationError as error:
                raise PromptError(
                    f"{where}, row {number}: {first_problem(error)}; a row needs `prompt` (text) or `messages`, "
                    "and `label` (harmful or benign)."
                ) from error
        if not rows:
            raise PromptError(f"{where} holds no prompts; give a file with at least one row.")
        return cls(name=name, rows=tuple(rows))

    @property
    def hash(self) -> str:
        """Twelve hex digits of the prompts and labels: the same wherever and in whatever order the set was read."""
        body = sorted([row.label, *([m.role, m.content] for m in row.conversation)] for row in self.rows)
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:12]

    def save(self, path: Path) -> None:
        """Writes the rows as JSONL, empty columns left out."""
        write_jsonl(path, self.rows)

    def sample(self, n: int) -> Self:
        """An even sample of `n` rows (all of them if there are fewer): every k-th row, in order."""
        return self.model_copy(update={"rows": tuple(evenly(self.rows, n))})

    def where(self, **columns: str) -> Self:
        """The rows whose columns have the given values, e.g. `where(label="harmful")`.

        Raises:
            PromptError: no row has them.
        """
        rows = tuple(r for r in self.rows if all(getattr(r, k) == v for k, v in columns.items()))
        if not rows:
            raise PromptError(f"{self.name} has no row with {', '.join(f'{k} = {v}' for k, v in columns.items())}.")
        return self.model_copy(update={"rows": rows})


class Evidence(Record):
    """What a person can read to judge what a feature means."""

    contexts: tuple[str, ...] = ()
    """Passages of text, the token where the feature is strongest between « and »."""
    raised: tuple[str, ...] = ()
    """Tokens whose logit the decoder direction raises most."""
    lowered: tuple[str, ...] = ()


class Feature(Record):
    """One SAE feature, why it was chosen and what it did when tried."""

    id: int = Field(ge=0)
    role: Literal["actuator", "sensor"]
    scores: dict[str, float] = {}
    """Named figures behind the choice; rates are shares of 1."""
    level: float = 0.0
    """Usual maximum of the activation, in the SAE's units: the value that a dose of 1 clamps to."""
    evidence: Evidence = Evidence()


class Area(Record):
    """Area under the ROC curve, with its 95 % interval: how often a harmful row scores above a benign one."""

    area: float
    """Ties count half."""
    low: float
    high: float
    harmful: int
    """Rows."""
    benign: int


class HeldOutPair(Record):
    """The harmful rows of one source against the benign rows of one (perhaps the same)."""

    harmful: str
    benign: str
    unseen: Area
    """Fitted without either source."""
    seen: Area
    """Fitted to other rows of both."""


class HeldOut(Record):
    """How well harm is read where the style of the prompts is new: what is lost from `seen` to `unseen` was style."""

    reader: str
    pairs: tuple[HeldOutPair, ...]
    unseen: Area
    """Mean over the pairs, each counting alike."""
    seen: Area
    not_measured: tuple[tuple[str, str], ...] = ()
    """Pairs without which only one label is left to fit to."""


class FeatureSet(Record):
    """What `demur find` found, in order of rank."""

    model: str
    model_hash: str
    sae: str
    sae_hash: str
    site: str
    method: str
    how: str
    """One paragraph: from which data and by which rule the features were chosen."""
    pooling: Pooling = "max"
    """How the sensors' activations on a prompt become one."""
    bias: float = 0.0
    """Of the logistic model whose weights are the sensors' `weight` scores."""
    features: tuple[Feature, ...]
    held_out: tuple[HeldOut, ...] = ()
    """Sensors, and a dense probe beside them, on sources of prompts that they were not fitted to (`--held-out`)."""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads `features.json`.

        Raises:
            FileError: no such file, or not a feature set.
        """
        return parse(cls, read_json(Path(path)), path, FileError)

    def actuators(self) -> tuple[Feature, ...]:
        """The features that write refusal, best first."""
        return tuple(f for f in self.features if f.role == "actuator")

    def sensors(self) -> tuple[Feature, ...]:
        """The features that read harm, best first."""
        return tuple(f for f in self.features if f.role == "sensor")


class Edit(Record):
    """One operation on one feature.

    `value` is the activation to clamp to, the amount to add (both in the SAE's units) or the factor to scale by;
    ablate takes none.
    """

    feature: int = Field(ge=0)
    operation: Operation
    value: float = 0.0


class Push(Record):
    """One operation with a vector of the policy's own, which need not be an SAE's: what dense methods do.

    add: `x + value · v`. project: set the projection on `v` to `value`. map: `x + value · (x_last @ M)`, where `M` is
    `[d_model, d_model]` and `x_last` the residual stream at the last prompt token.
    """

    vector: str
    """Name in the safetensors file beside the policy's."""
    operation: Literal["add", "project", "map"]
    value: float = 1.0


class Intervention(Record):
    """What a policy does to the residual stream at one site: edits of SAE features, then pushes, in order."""

    site: str
    edits: tuple[Edit, ...] = ()
    pushes: tuple[Push, ...] = ()
    positions: Positions = "reply"
    """reply: from the last prompt token on; user: the user's tokens too; all: all but BOS, system and role tokens;
    prompt: every token of the prompt and none of the reply."""
    keep_error: bool = True
    """Keep what the SAE does not reconstruct; False is the plain encode-edit-decode splice."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.edits and not self.pushes and self.keep_error:
            raise ValueError("an intervention needs edits, pushes, or keep_error = false")
        return self

    @property
    def needs_sae(self) -> bool:
        """Whether it reads or writes features."""
        return bool(self.edits) or not self.keep_error

    @field_validator("edits")
    @classmethod
    def _each_feature_once(cls, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        ids = [e.feature for e in edits]
        if len(set(ids)) != len(ids):
            raise ValueError("a feature may be edited once per intervention")
        return edits


class Gate(Record):
    """A sparse logistic reading of the prompt: open when the score reaches the threshold.

    The score is `bias + Σ weights[j] · pool(f_j)`, with the pooled activations of the unedited stream.
    """

    site: str
    features: tuple[int, ...] = Field(min_length=1)
    weights: tuple[float, ...]
    bias: float
    threshold: float
    pooling: Pooling = "max"

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Self:
        if len(self.features) != len(self.weights):
            raise ValueError(f"{len(self.features)} features but {len(self.weights)} weights")
        return self


class Condition(Record):
    """A dense gate, CAST's (Lee et al., arXiv 2409.05907): how far the prompt lies along one direction.

    With `h` the mean of the unedited stream over the prompt's tokens and `P = v vᵀ / vᵀv`, the score is
    `sign · cos(h, tanh(P h))`; open when it reaches the threshold.
    """

    site: str
    vector: str
    """Name in the safetensors file beside the policy's."""
    threshold: float
    sign: Literal[1, -1] = 1
    """-1 where harm lies below the threshold; CAST's comparator."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Named arrays in float32: directions `[d_model]` and maps `[d_model, d_model]`; equal where the bytes are."""

    arrays: dict[str, Any]
    data: bytes
    """As a safetensors file."""

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> Self:
        """From numpy arrays."""
        from safetensors.numpy import save

        arrays = {name: arrays[name].astype("float32") for name in sorted(arrays)}
        return cls(arrays, save(arrays))

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a safetensors file.

        Raises:
            FileError: no such file, or not of that kind.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not path.is_file():
            raise FileError(f"{path} does not exist; a policy with vectors has them beside its .toml file.")
        data = path.read_bytes()
        try:
            return cls(load(data), data)
        except (SafetensorError, KeyError, ValueError) as error:
            raise FileError(f"{path} is not a safetensors file ({error}); make the policy again.") from error

    @property
    def hash(self) -> str:
        """Twelve hex digits of the bytes."""
        return hashlib.sha256(self.data).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vectors) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]


class Policy(Record):
    """When to act (gate; none means always) and how (interventions, a canned reply; none means never)."""

    name: str
    about: str = ""
    model: str = ""
    model_hash: str = ""
    """Empty only in a policy that edits nothing and reads nothing."""
    sae_hash: str = ""
    system: str = ""
    """System prompt put before every conversation, gate or no gate."""
    gate: Gate | Condition | None = None
    interventions: tuple[Intervention, ...] = ()
    canned: str = ""
    """Where the policy acts, the reply is this text, and nothing is generated."""
    vectors: str = ""
    """Hash of the file of vectors beside the policy's, if it has one."""
    receipt: dict[str, Any] = {}
    """How the operating point was chosen: data, rule, figures."""
    _vectors: Vectors | None = PrivateAttr(None)

    @property
    def acts(self) -> bool:
        """Whether it ever does anything once its gate is open."""
        return bool(self.interventions or self.canned)

    @property
    def is_plain(self) -> bool:
        """Whether it leaves the model alone, whatever is asked."""
        return not self.acts and self.gate is None and not self.system

    @property
    def needs_sae(self) -> bool:
        """Whether an SAE's features are read or written."""
        return isinstance(self.gate, Gate) or any(i.needs_sae for i in self.interventions)

    def at_dose(self, dose: float) -> Self:
        """The policy with every value that it clamps to, adds or pushes by multiplied by `dose`."""
        scaled = tuple(
            i.model_copy(
                update={
                    "edits": tuple(e.model_copy(update={"value": dose * e.value}) for e in i.edits),
                    "pushes": tuple(p.model_copy(update={"value": dose * p.value}) for p in i.pushes),
                }
            )
            for i in self.interventions
        )
        return self.model_copy(update={"name": f"{self.name}@{dose:g}", "interventions": scaled})

    def conversation(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the policy's system prompt, before the user's own if there is one."""
        if not self.system:
            return tuple(messages)
        own = messages[0].content if messages[0].role == "system" else ""
        rest = messages[1:] if own else messages
        return (Message(role="system", content=f"{self.system}\n\n{own}".strip()), *rest)

    def vector(self, name: str) -> Any:
        """A vector by name, as a numpy array.

        Raises:
            PolicyError: the policy has no such vector.
        """
        if self._vectors is None or name not in self._vectors.arrays:
            known = ", ".join(self._vectors.arrays) if self._vectors else "none"
            raise PolicyError(f"policy {self.name} has no vector {name!r}; it has {known}. Make the policy again.")
        return self._vectors.arrays[name]

    def holding(self, arrays: dict[str, Any]) -> Self:
        """The policy with these vectors (numpy arrays by name)."""
        held = Vectors.of(arrays)
        made = self.model_copy(update={"vectors": held.hash})
        made._vectors = held
        return made

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a policy file (TOML).

        Raises:
            FileError: no such file or not TOML.
            PolicyError: a key or value that a policy does not have.
        """
        path = Path(path)
        try:
            raw = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise FileError(
                f"{path} is not a TOML file ({error}); give a policy that `demur calibrate` wrote."
            ) from error
        policy = parse(cls, raw, path, PolicyError)
        if policy.vectors:
            held = Vectors.load(path.with_suffix(".safetensors"))
            if held.hash != policy.vectors:
                raise PolicyError(
                    f"{path.with_suffix('.safetensors')} ({held.hash}) is not the file that {path} was written with "
                    f"({policy.vectors}); make the policy again."
                )
            policy._vectors = held
        return policy

    def save(self, path: Path) -> None:
        """Writes the policy as TOML, its vectors beside it as safetensors."""
        if self._vectors is not None:
            with replacing(path.with_suffix(".safetensors")) as tmp:
                tmp.write_bytes(self._vectors.data)
        with replacing(path) as tmp:
            tmp.write_text(tomli_w.dumps(self.model_dump(mode="json", exclude_none=True)), encoding="utf-8")

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with whatever changes what the policy does."""
        # What a policy does not have is left out, so that a hash outlives the fields that are added later.
        body = self.model_dump(mode="json", exclude={"receipt", "about"}, exclude_defaults=True)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


class Fired(Record):
    """One feature that took part in an answer."""

    feature: int
    role: Literal["sensor", "actuator"]
    value: float
    """Sensor: its pooled activation on the prompt. Actuator: the value it was set to or changed by."""


class Transcript(Record):
    """One reply, with what the policy saw and did."""

    id: str
    policy: str
    policy_hash: str = ""
    set: str
    label: Label
    kind: str | None = None
    category: str | None = None
    pair: str | None = None
    family: str | None = None
    goal: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    reply: str
    tokens: int
    finish: Literal["stop", "length"]
    gate: float | None = None
    """The gate's score on the prompt; None where the policy has no gate."""
    open: bool = False
    """Whether the policy acted."""
    edited: int = 0
    """Token positions whose residual stream was edited."""
    fired: tuple[Fired, ...] = ()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What was answered, as messages, whichever way it was given."""
        return self.messages or (Message(role="user", content=self.prompt or ""),)


class Verdict(Record):
    """What a judge says of one transcript."""

    id: str
    policy: str
    set: str
    judge: str
    outcome: Outcome | None = None
    """None where the judge could not say; such a row is counted as not judged, never as any outcome."""
    why: str = ""
    """What decided; where the outcome is None, what went wrong."""
    harmful_prompt: bool | None = None
    """Of judges that say so: whether the request is harmful."""
    harmful_reply: bool | None = None
    """Of judges that say so: whether the reply is harmful."""


def evenly(rows: Sequence[T], n: int) -> list[T]:
    """`n` rows (all of them if there are fewer), evenly spaced and in order."""
    return [rows[i * len(rows) // n] for i in range(n)] if n < len(rows) else list(rows)


def parse(kind: type[R], raw: Any, where: Path | str, error: type[DemurError]) -> R:
    """Validates `raw` as a record, turning the first problem into one sentence that names the nearest known key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as problem:
        raise error(f"{where}: {first_problem(problem, kind)}.") from problem


def first_problem(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first validation error in words."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and kind is not None:
        near = difflib.get_close_matches(key.split(".")[-1], list(kind.model_fields), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(kind.model_fields)}"
        return f"unknown key `{key}`; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"`{key}`: {message[:1].lower()}{message[1:]} (given: {json.dumps(first['input'], default=str)[:80]})"
