"""Features that `demur find` chose, with the evidence for each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr

from demur.errors import FileError, PolicyError
from demur.files import read_json, replacing, write_json
from demur.records.record import Record, parse
from demur.records.sensors import Continuation, FeatureSensor, JoinedSensor, Kind, Pooling, Reader, Sensor, readers
from demur.records.vectors import Vectors


class Evidence(Record):
    """What a person can read to judge what a feature means."""

    contexts: tuple[str, ...] = ()
    """Passages of text, the token where the feature is strongest between « and »."""
    raised: tuple[str, ...] = ()
    """Tokens whose logit the decoder direction raises most."""
    lowered: tuple[str, ...] = ()


class Dose(Record):
    """What becomes of harmful validation prompts when features are raised to a share of their levels."""

    dose: float
    refused: float
    """Share of 1."""
    degenerate: float = 0.0


class Meaning(Record):
    """What a feature fires on, what it does, and what stands near it."""

    kinds: dict[str, float] = {}
    """Share of the training prompts of each kind, of harm or harmless, on which it fires; the highest first."""
    curve: tuple[Dose, ...] = ()
    """Alone, at several shares of its level."""
    nearest: dict[int, float] = {}
    """Features whose decoder rows are nearest, and the cosines."""
    path: tuple[str, ...] = ()
    """Its place in the concept tree, from the widest concept down to its own."""


class Feature(Record):
    """One SAE feature, why it was chosen and what it did when tried."""

    id: int = Field(ge=0)
    role: Literal["actuator", "sensor"]
    scores: dict[str, float] = {}
    """Named figures behind the choice; rates are shares of 1."""
    level: float = 0.0
    """Usual maximum of the activation, in the SAE's units: the value that a dose of 1 clamps to."""
    evidence: Evidence = Evidence()
    name: str = ""
    """What it seems to mean, in a line."""
    meaning: Meaning = Meaning()


class Removal(Record):
    """One step of the backward elimination: which feature went, and what those that were left still did."""

    feature: int
    left: int
    """Features left without it."""
    log_odds: float
    """Of a refusal, under those left; mean over harmful validation prompts, in nats."""
    refused: float
    """Share of harmful validation prompts refused under those left, by generating."""
    degenerate: float
    gone: bool
    """Whether the elimination went as far as this."""


class Interaction(Record):
    """What two features do together, beyond what each does alone, to the log-odds of a refusal (nats)."""

    features: tuple[int, int]
    together: float
    """Gain over the plain model when both are raised."""
    apart: float
    """Sum of the gains when each is raised alone."""

    @property
    def surplus(self) -> float:
        """Above 0: they work together; below: one does what the other does."""
        return self.together - self.apart


class Dormant(Record):
    """A feature that would gain if the chosen ones were ablated: what may take over from them."""

    feature: int
    before: float
    """What raising it would add to the log-odds of a refusal, to first order, in nats."""
    after: float
    """The same with the chosen features ablated."""


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
    candidates: tuple[Feature, ...] = ()
    """Those that might have been actuators, in order of rank, with the score that each signal gave them."""
    pruned: tuple[Removal, ...] = ()
    """The backward elimination of the actuators, step by step; the last steps were tried, and not gone through with."""
    interactions: tuple[Interaction, ...] = ()
    """Pairs of the weightiest actuators, the strongest surplus first."""
    dormant: tuple[Dormant, ...] = ()
    """Features that would take over from the actuators, if any."""
    curve: tuple[Dose, ...] = ()
    """All actuators together, at several shares of their levels."""
    held_out: tuple[HeldOut, ...] = ()
    """Sensors, and a dense probe beside them, on sources of prompts that they were not fitted to (`--held-out`)."""
    sensor: Sensor | None = None
    """What reads harm, where it is more than the sensors above, weighted and summed; over one or several sites."""
    kinds: tuple[Kind, ...] = ()
    """What reads which kind of harm it is."""
    continuation: Continuation | None = None
    """What reads harm off the reply; its thresholds are set anew by `demur calibrate`."""
    saes: dict[str, str] = {}
    """Hash of the SAE at each other site at which features are read."""
    vectors: str = ""
    """Hash of the file of vectors beside this one, which probes need."""
    _vectors: Vectors | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads `features.json`, and the vectors beside it.

        Raises:
            FileError: no such file, or not a feature set; its vectors are not there, or others.
        """
        path = Path(path)
        found = parse(cls, read_json(path), path, FileError)
        if found.vectors:
            found._vectors = Vectors.beside(path, found.vectors, "find the features again")
        return found

    def save(self, path: Path) -> None:
        """Writes the features as JSON, their vectors beside them as safetensors."""
        if self._vectors is not None:
            with replacing(path.with_suffix(".safetensors")) as tmp:
                tmp.write_bytes(self._vectors.data)
        write_json(path, self)

    def holding(self, arrays: dict[str, Any]) -> Self:
        """The features with these vectors (numpy arrays by name)."""
        held = Vectors.of(arrays)
        made = self.model_copy(update={"vectors": held.hash})
        made._vectors = held
        return made

    @property
    def arrays(self) -> dict[str, Any]:
        """The vectors by name, as numpy arrays."""
        return self._vectors.arrays if self._vectors else {}

    def renamed(self, names: Mapping[int, str]) -> Self:
        """The same with other names for some features."""
        features = tuple(f.model_copy(update={"name": names.get(f.id, f.name)}) for f in self.features)
        return self.model_copy(update={"features": features})

    def actuators(self) -> tuple[Feature, ...]:
        """The features that write refusal, best first."""
        return tuple(f for f in self.features if f.role == "actuator")

    def sensors(self) -> tuple[Feature, ...]:
        """The features that read harm, best first."""
        return tuple(f for f in self.features if f.role == "sensor")

    def reading(self) -> Reader | JoinedSensor:
        """What reads harm off a prompt: `sensor`, or the sensors' weighted sum.

        Raises:
            PolicyError: there is neither.
        """
        if self.sensor is not None:
            return self.sensor
        if not (found := self.sensors()):
            raise PolicyError(
                f"the features ({self.method}) have no sensors, so nothing can read harm; "
                "find features again with --method effect or contrast."
            )
        return FeatureSensor(
            site=self.site,
            features=tuple(f.id for f in found),
            weights=tuple(f.scores["weight"] for f in found),
            bias=self.bias,
            pooling=self.pooling,
        )

    @property
    def read_at(self) -> tuple[str, ...]:
        """Sites whose SAE is needed: that of the features themselves, then others that a sensor reads features at."""
        every = readers(self.sensor) if self.sensor is not None else ()
        every += tuple(r for k in self.kinds for r in readers(k.sensor))
        every += (self.continuation.sensor,) if self.continuation else ()
        return tuple(dict.fromkeys((self.site, *(r.site for r in every if isinstance(r, FeatureSensor)))))
