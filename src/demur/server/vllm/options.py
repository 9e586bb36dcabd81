"""What vLLM's processes are told of policies: by the environment, since a plug-in is given nothing else."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from demur.records.record import Record
from demur.server.impact import LOCAL_CARD, ImpactCard


class Options(Record):
    """Which policies are on offer, and to whom."""

    policies: tuple[str, ...]
    """`DEMUR_POLICIES`: names or files, with commas between; the first is that of requests which name none."""
    saes: tuple[Path, ...] = ()
    """`DEMUR_SAES`: folders of SAEs that the policies need, where it is not the shipped one; with commas between."""
    impact: Path | None = None
    """`DEMUR_IMPACT`: the impact card, which says what a request may name."""

    @classmethod
    def told(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """What the environment says; None where it names no policy, and then vLLM is left alone."""
        policies = _parts(environment.get("DEMUR_POLICIES", ""))
        if not policies:
            return None
        impact = environment.get("DEMUR_IMPACT")
        saes = tuple(Path(p) for p in _parts(environment.get("DEMUR_SAES", "")))
        return cls(policies=policies, saes=saes, impact=Path(impact) if impact else None)

    def tell(self) -> dict[str, str]:
        """The environment that says so."""
        told = {"DEMUR_POLICIES": ",".join(self.policies)}
        if self.saes:
            told["DEMUR_SAES"] = ",".join(map(str, self.saes))
        return told | ({"DEMUR_IMPACT": str(self.impact)} if self.impact else {})

    @property
    def card(self) -> ImpactCard:
        """The impact card; without one, what holds on loopback."""
        return ImpactCard.load(self.impact) if self.impact else LOCAL_CARD


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
