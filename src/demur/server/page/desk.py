"""What the page works with, beside the API that it asks as any client does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from demur.models.load import LanguageModel
from demur.records import Feature, FeatureSet, Policy
from demur.sae.sae import SAE
from demur.server.feedback.store import Store
from demur.server.keys import LOCAL, Caller, Keys


@dataclass(frozen=True)
class Desk:
    """The model and its policies, for what is read and moved here; the store; finished runs."""

    app: FastAPI
    lm: LanguageModel
    saes: Mapping[str, SAE]
    policy: Callable[[], Policy]
    """The one that is served now: policies may be exchanged while the server runs."""
    store: Store
    retention_days: float
    reviewer: str = ""
    """Who reviews appeals, as the impact card says."""
    features: Sequence[FeatureSet] = ()
    runs: Path | None = None
    """A run of `demur evaluate`, or a folder of runs."""

    @property
    def keys(self) -> Keys | None:
        """The keys that the server takes; None where it takes anybody on this machine."""
        return self.app.state.keys

    def caller(self, key: str) -> Caller | None:
        """Who sits at the page with this key."""
        return LOCAL if self.keys is None else self.keys.caller(key)

    @property
    def known(self) -> dict[tuple[str, int], Feature]:
        """All features with evidence, by site and number; of one that is in several sets, the last one's."""
        return {(s.site, f.id): f for s in self.features for f in s.features}
