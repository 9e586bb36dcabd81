"""Features that `demur find` chose, with the evidence for each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from demur.errors import FileError
from demur.files import read_json
from demur.records.record import Record, parse

Pooling = Literal["max", "mean", "last"]


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

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads `features.json`.

        Raises:
            FileError: no such file, or not a feature set.
        """
        return parse(cls, read_json(Path(path)), path, FileError)

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
