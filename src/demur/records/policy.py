"""The policy: when to act and how, at which operating point; one TOML file, and vectors beside it."""

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, PrivateAttr

from demur.errors import FileError, PolicyError
from demur.files import read_text, replacing
from demur.records.interventions import Intervention
from demur.records.prompts import Message
from demur.records.record import Record, parse
from demur.records.sensors import FeatureSensor, Gate
from demur.records.vectors import Vectors

LevelName = Literal["off", "relaxed", "standard", "strict"]
LEVELS: tuple[LevelName, ...] = ("off", "relaxed", "standard", "strict")


class Level(Record):
    """An operating point: where the gate opens, and how much is done."""

    threshold: float
    dose: float = Field(default=1.0, gt=0)
    """Relative to the values in the policy's interventions."""
    about: str = ""
    """What it was set to keep to, in words."""


class Policy(Record):
    """When to act (gate; none means always) and how (interventions, a canned reply; none means never)."""

    name: str
    about: str = ""
    model: str = ""
    model_hash: str = ""
    """Empty only in a policy that edits nothing and reads nothing."""
    saes: dict[str, str] = {}
    """Hash of the SAE at each site whose features are read or written."""
    system: str = ""
    """System prompt put before every conversation, gate or no gate."""
    gate: Gate | None = None
    interventions: tuple[Intervention, ...] = ()
    canned: str = ""
    """Where the policy acts, the reply is this text, and nothing is generated."""
    levels: dict[LevelName, Level] = {}
    """Operating points by name, for `at_level`; what stands in `gate` and `interventions` is the one in force."""
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
    def featured(self) -> dict[str, tuple[int, ...]]:
        """Features that are read or written, by site; a site may need its SAE and name none."""
        found: dict[str, dict[int, None]] = {}
        for reader in self.gate.every_reader if self.gate else ():
            if isinstance(reader, FeatureSensor):
                found.setdefault(reader.site, {}).update(dict.fromkeys(reader.features))
        for act in self.interventions:
            if act.needs_sae:
                found.setdefault(act.site, {}).update(dict.fromkeys(e.feature for e in act.edits))
        return {site: tuple(features) for site, features in found.items()}

    @property
    def prompt_only(self) -> Self:
        """The policy without its gate on the reply."""
        if self.gate is None or self.gate.continuation is None:
            return self
        return self.model_copy(update={"gate": self.gate.model_copy(update={"continuation": None})})

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

    def at_level(self, level: str, kinds: Mapping[str, str] | None = None) -> Self:
        """The policy at one of its levels; `kinds` sets another for some kinds of harm (`weapons = "strict"`).

        Raises:
            PolicyError: a level or a kind that the policy does not have.
        """
        chosen, by_kind = self._level(level), {k: self._level(name) for k, name in (kinds or {}).items()}
        if level == "off" and not by_kind:
            # Nothing is read, so nothing is paid for.
            return self.model_copy(update={"name": f"{self.name}:off", "gate": None, "interventions": (), "canned": ""})
        if self.gate is None:
            raise PolicyError(f"policy {self.name} has no gate, so it has no levels but off; give one that has a gate.")
        known = [k.name for k in self.gate.kinds]
        if unknown := [k for k in by_kind if k not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it reads {', '.join(known) or 'none'}."
            raise PolicyError(f"policy {self.name} does not tell the kind of harm {unknown[0]!r} from others; {hint}")
        gate = {
            "threshold": chosen.threshold,
            "thresholds": {k: at.threshold for k, at in by_kind.items()},
            "doses": {k: at.dose / chosen.dose for k, at in by_kind.items() if at.dose != chosen.dose},
        }
        name = ",".join([f"{self.name}:{level}", *(f"{k}={v}" for k, v in (kinds or {}).items())])
        dosed = self if chosen.dose == 1 else self.at_dose(chosen.dose)
        return dosed.model_copy(update={"name": name, "gate": self.gate.model_copy(update=gate)})

    def _level(self, name: str) -> Level:
        if name == "off":
            return self.levels.get("off", Level(threshold=math.inf))
        if name not in self.levels:
            known = ", ".join(("off", *(n for n in self.levels if n != "off")))
            raise PolicyError(f"policy {self.name} has no level {name!r}; it has {known}.")
        return self.levels[name]

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
        """Reads a policy file (TOML). With `include = "other.toml"`, what it does not say is as in that file, table
        by table; a table of another `kind` takes the place of the one there. How gate and levels were chosen (`receipt`) is
        not taken over where they are others.

        Raises:
            FileError: no such file or not TOML; its vectors are not there, or others.
            PolicyError: a key or value that a policy does not have; files that include each other.
        """
        raw, where = _included(Path(path))
        policy = parse(cls, raw, path, PolicyError)
        if policy.vectors:
            beside = where.get("vectors", Path(path))
            policy._vectors = Vectors.beside(beside, policy.vectors, "make the policy again")
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


def _included(path: Path, before: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Path]]:
    # The file's keys over those of the file that it includes; and in which file each key was found.
    if path.resolve() in before:
        raise PolicyError(f"{path} includes itself ({' → '.join(p.name for p in (*before, path))}).")
    try:
        raw = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"{path} is not a TOML file ({error}); give a policy that `demur calibrate` wrote.") from error
    where = dict.fromkeys(raw, path)
    if (other := raw.pop("include", None)) is None:
        return raw, where
    if not isinstance(other, str):
        raise PolicyError(f"{path}: `include` takes the name of a policy file (given: {other!r}).")
    base, found = _included(path.parent / other, (*before, path.resolve()))
    if raw.keys() & {"gate", "levels"}:
        base.pop("receipt", None)
    return _over(base, raw), found | where


def _over(base: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    # `raw` on top of `base`, tables within tables.
    made = dict(base)
    for key, value in raw.items():
        under = base.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            kind = under.get("kind")
            made[key] = _over(under, value) if value.get("kind", kind) == kind else value
        else:
            made[key] = value
    return made
