"""Sensors: what reads harm off the residual stream or asks a guard model, one brick each, and how bricks are joined.

A sensor gives each row a score, in log-odds or in the units that its kind states. A gate compares it with a threshold.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from demur.records.record import Record

Pooling = Literal["max", "mean", "last"]


class FeatureSensor(Record):
    """A sparse logistic reading: `bias + Σ weights[j] · pool(f_j)`, the activations pooled over the tokens read."""

    kind: Literal["features"] = "features"
    name: str = "harm"
    site: str
    features: tuple[int, ...] = Field(min_length=1)
    weights: tuple[float, ...]
    bias: float = 0.0
    pooling: Pooling = "max"

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Self:
        if len(self.features) != len(self.weights):
            raise ValueError(f"{len(self.features)} features but {len(self.weights)} weights")
        return self


class ProbeSensor(Record):
    """A dense logistic reading: `bias + v · pool(x)`, of the stream itself. Not made of features, so it names none."""

    kind: Literal["probe"] = "probe"
    name: str = "probe"
    site: str
    vector: str
    """Name in the safetensors file beside the policy's, `[d_model]`."""
    bias: float = 0.0
    pooling: Pooling = "mean"


class AttentionSensor(Record):
    """A small attention probe of the stream: not made of features, so it names none.

    Each of a few heads weighs the tokens it reads and takes a few figures off them, `z = Σ_t softmax_t(Q x_t) (V x_t + c)`;
    the score is `bias + w · gelu(z)`.
    """

    kind: Literal["attention"] = "attention"
    name: str = "harm"
    site: str
    vector: str
    """First part of the names of its arrays in the safetensors file beside the policy's: `.query [heads, d_model]`,
    `.value [heads · width, d_model]`, `.value_bias` and `.out [heads · width]`."""
    bias: float = 0.0


class CastSensor(Record):
    """CAST's condition (Lee et al., arXiv 2409.05907): how far the prompt lies along one direction.

    With `h` the mean of the unedited stream over the prompt's tokens and `P = v vᵀ / vᵀv`, the score is
    `sign · cos(h, tanh(P h))`.
    """

    kind: Literal["cast"] = "cast"
    name: str = "condition"
    site: str
    vector: str
    """Name in the safetensors file beside the policy's, `[d_model]`."""
    sign: Literal[1, -1] = 1
    """-1 where harm lies below the threshold; CAST's comparator."""


class GuardModel(Record):
    """A guard model, and how it is asked whether a conversation is unsafe: how its answer begins is what it says.

    Llama Guards are asked by their chat template. One whose template asks for more than the talk (ShieldGemma's wants a
    guideline), and any other model, is shown the text `ask`.
    """

    model: str
    """A folder, a GGUF file, or a name on the Hugging Face hub."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Precision in which it is held. In bfloat16 scores lie in steps of some 0.1 nats."""
    ask: str = ""
    """The text it is shown, with {conversation} in it; by default the conversation in its chat template."""
    unsafe: str = Field(default="unsafe", min_length=1)
    """How its answer begins where it finds harm, with the spaces and line ends before it: that of Llama Guard 3 is
    two line ends and `unsafe`, that of others ` Yes`."""
    safe: str = Field(default="safe", min_length=1)
    """How it begins where it finds none."""

    @model_validator(mode="after")
    def _shows_the_conversation(self) -> Self:
        if self.ask and "{conversation}" not in self.ask:
            raise ValueError("`ask` has no {conversation} in it, so the guard would not see what was said")
        return self


class GuardSensor(GuardModel):
    """What a guard model says of the prompt: `log p(unsafe) − log p(safe)`, in nats."""

    kind: Literal["guard"] = "guard"
    name: str = "guard"
    model_hash: str = ""
    """Of the model with which it was calibrated; empty takes any that lies there."""


class JoinedSensor(Record):
    """Sensors joined. sum: `bias + Σ weights[i] · score_i`; any: the highest margin; all: the lowest; not: the margin's
    opposite. A margin is `score_i − thresholds[i]`, so a gate on any, all or not has the threshold 0."""

    kind: Literal["joined"] = "joined"
    name: str = ""
    rule: Literal["sum", "any", "all", "not"]
    of: tuple["Sensor", ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()
    """sum: one each."""
    thresholds: tuple[float, ...] = ()
    """any, all, not: one each."""
    bias: float = 0.0

    @model_validator(mode="after")
    def _a_figure_for_each(self) -> Self:
        wanted, other = ("weights", "thresholds") if self.rule == "sum" else ("thresholds", "weights")
        if len(getattr(self, wanted)) != len(self.of) or getattr(self, other):
            raise ValueError(
                f"{self.rule} takes `{wanted}`, one for each of its {len(self.of)} sensors, and no {other}"
            )
        if self.rule == "not" and len(self.of) != 1:
            raise ValueError(f"not takes one sensor, given are {len(self.of)}")
        return self


StreamReader = FeatureSensor | ProbeSensor | AttentionSensor | CastSensor
"""Sensors that read the stream, at a site."""
Reader = StreamReader | GuardSensor
"""Sensors that read something themselves."""
Sensor = Annotated[Reader | JoinedSensor, Field(discriminator="kind")]
JoinedSensor.model_rebuild()


def readers(sensor: Reader | JoinedSensor) -> tuple[Reader, ...]:
    """The sensors that a sensor is made of, in order; itself, where it is not joined."""
    if isinstance(sensor, JoinedSensor):
        return tuple(leaf for part in sensor.of for leaf in readers(part))
    return (sensor,)


class Kind(Record):
    """One kind of harm, and what reads it; of all kinds, the one with the highest score is a row's."""

    name: str
    """As in the taxonomy (`docs/taxonomy.md`)."""
    sensor: Sensor


class Continuation(Record):
    """A second gate, on the reply as it is written: for what slips past the prompt, and for late turns.

    The sensor's score of each token of the reply, smoothed over the last few (`smooth ← smooth + (score − smooth) / τ`,
    from 0), opens the gate when it reaches `opens` and shuts it when it falls below `closes` (hysteresis).
    """

    sensor: Annotated[FeatureSensor | ProbeSensor | AttentionSensor, Field(discriminator="kind")]
    """Read token by token: its pooling is not used."""
    opens: float
    closes: float
    tau: float = Field(default=4.0, ge=1)
    """Tokens over which the score is smoothed; 1 is not at all."""

    @model_validator(mode="after")
    def _opens_above_where_it_closes(self) -> Self:
        if self.closes > self.opens:
            raise ValueError(f"closes ({self.closes}) lies above opens ({self.opens})")
        return self


class Gate(Record):
    """Opens for a row when its prompt's score reaches the threshold, or later, when its reply's does."""

    sensor: Sensor
    threshold: float
    turns: Literal["all", "either"] = "all"
    """all: the conversation is read as a whole. either: where there are several turns, the last is read by itself too, and
    the higher score counts."""
    soft: float = Field(default=0.0, ge=0)
    """Score above the threshold over which the dose rises from `floor` to 1; 0: full dose at once."""
    floor: float = Field(default=0.5, ge=0, le=1)
    """Dose at the threshold, where `soft` is not 0."""
    kinds: tuple[Kind, ...] = ()
    thresholds: dict[str, float] = {}
    """By kind of harm, where it is not `threshold`."""
    doses: dict[str, float] = {}
    """By kind of harm, relative to the interventions' values, where it is not 1."""
    continuation: Continuation | None = None

    @model_validator(mode="after")
    def _kinds_it_has(self) -> Self:
        known = [k.name for k in self.kinds]
        if other := [name for name in (*self.thresholds, *self.doses) if name not in known]:
            raise ValueError(f"a threshold or dose for {other[0]!r}, a kind that it does not read; it reads {known}")
        return self

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Everything that reads the prompt."""
        return tuple(dict.fromkeys((*readers(self.sensor), *(r for k in self.kinds for r in readers(k.sensor)))))

    @property
    def every_reader(self) -> tuple[Reader, ...]:
        """Everything that reads the prompt or the reply."""
        late = (self.continuation.sensor,) if self.continuation else ()
        return tuple(dict.fromkeys((*self.readers, *late)))

    @property
    def stream_readers(self) -> tuple[StreamReader, ...]:
        """Those of all its readers that read the stream."""
        return tuple(r for r in self.every_reader if not isinstance(r, GuardSensor))

    @property
    def guards(self) -> tuple[GuardSensor, ...]:
        """The guard models that it asks of the prompt."""
        return tuple(r for r in self.readers if isinstance(r, GuardSensor))

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it reads the stream, in the model's order."""
        return tuple(sorted({r.site for r in self.stream_readers}, key=lambda site: int(site.split(".")[0])))
