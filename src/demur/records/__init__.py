"""What travels between rooms: prompts, features, policies, transcripts, verdicts.

Each record is frozen, knows no unknown keys, and lives on disk as JSONL (rows), JSON (features) or TOML (policies), so
that every stage can be run again from files.
"""

from demur.records.features import (
    Area,
    Dormant,
    Dose,
    Evidence,
    Feature,
    FeatureSet,
    HeldOut,
    HeldOutPair,
    Interaction,
    Meaning,
    Removal,
)
from demur.records.interventions import Edit, Intervention, Operation, Positions, Push
from demur.records.policy import LEVELS, Level, LevelName, Policy
from demur.records.prompts import LIKE_HARM, Label, Message, Prompt, PromptSet, SetOrigin
from demur.records.rates import Rate
from demur.records.record import R, Record, evenly, evenly_of, first_problem, parse, read_rows
from demur.records.sensors import (
    AttentionSensor,
    CastSensor,
    Continuation,
    FeatureSensor,
    Gate,
    GuardModel,
    GuardSensor,
    JoinedSensor,
    Kind,
    Pooling,
    ProbeSensor,
    Reader,
    Sensor,
    readers,
)
from demur.records.transcripts import Fired, Heard, Outcome, Transcript, Verdict
from demur.records.vectors import Vectors

__all__ = [
    "LEVELS",
    "LIKE_HARM",
    "Area",
    "AttentionSensor",
    "CastSensor",
    "Continuation",
    "Dormant",
    "Dose",
    "Edit",
    "Evidence",
    "Feature",
    "FeatureSensor",
    "FeatureSet",
    "Fired",
    "Gate",
    "GuardModel",
    "GuardSensor",
    "Heard",
    "HeldOut",
    "HeldOutPair",
    "Interaction",
    "Intervention",
    "JoinedSensor",
    "Kind",
    "Label",
    "Level",
    "LevelName",
    "Meaning",
    "Message",
    "Operation",
    "Outcome",
    "Policy",
    "Pooling",
    "Positions",
    "ProbeSensor",
    "Prompt",
    "PromptSet",
    "Push",
    "R",
    "Rate",
    "Reader",
    "Record",
    "Removal",
    "Sensor",
    "SetOrigin",
    "Transcript",
    "Vectors",
    "Verdict",
    "evenly",
    "evenly_of",
    "first_problem",
    "parse",
    "read_rows",
    "readers",
]
