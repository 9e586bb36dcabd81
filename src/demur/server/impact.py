"""The impact card: what an operator has to have thought about before others than themselves are served.

users = "Students of the course, about 200, aged 18 and over."
level = "standard"                     # what a request gets that names no level
allowed = ["standard", "strict"]       # what a request may name
hazards = { weapons = "strict" }       # kinds of harm held at another level, whatever a request names
reviewer = "Safety desk <safety@example.org>, two working days."
retention_days = 30
"""

import tomllib
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from demur.errors import FileError, SettingsError
from demur.files import read_text
from demur.records.policy import LevelName
from demur.records.record import Record, parse


class ImpactCard(Record):
    """Who is affected, and who answers for it."""

    users: str
    """Who uses the server."""
    level: LevelName = "standard"
    """For requests that name none."""
    allowed: tuple[LevelName, ...] = ("standard", "strict")
    """Levels that a request may name."""
    hazards: dict[str, LevelName] = {}
    """Kinds of harm held at a level of their own, whatever a request names."""
    reviewer: str
    """Who reviews appeals, and in what time."""
    retention_days: int = Field(ge=0)
    """How long text is kept; 0 keeps none."""

    @field_validator("users", "reviewer")
    @classmethod
    def _filled_in(cls, text: str) -> str:
        if not text.strip(" .…?-") or text.strip().upper() in ("TODO", "TBD", "XXX"):
            raise ValueError("is not filled in")
        return text

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.level not in self.allowed:
            raise ValueError(f"level {self.level} is not among the allowed ({', '.join(self.allowed)})")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads an impact card (TOML).

        Raises:
            FileError: no such file or not TOML.
            SettingsError: something is missing or not filled in.
        """
        try:
            raw = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise FileError(f"{path} is not a TOML file ({error}); give an impact card.") from error
        return parse(cls, raw, path, SettingsError)


LOCAL_CARD = ImpactCard(
    users="Whoever is at this machine.",
    allowed=("off", "relaxed", "standard", "strict"),
    reviewer="Whoever started the server.",
    retention_days=30,
)
"""What holds on loopback where no card is given."""
