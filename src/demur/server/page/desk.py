"""What the page works with, beside the API that it asks as any client does."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from demur.records import Feature, FeatureSet, Policy
from demur.server.feedback.store import Store
from demur.server.keys import LOCAL, Caller
from demur.server.serving import Serving


@dataclass(frozen=True)
class Desk:
    """The server's parts, for what is read and moved here; the store; features with evidence; finished runs."""

    serving: Serving
    store: Store
    features: Sequence[FeatureSet] = ()
    runs: Path | None = None
    """A run of `demur evaluate`, or a folder of runs."""

    def caller(self, key: str) -> Caller | None:
        """Who sits at the page with this key."""
        return LOCAL if self.serving.keys is None else self.serving.keys.caller(key)

    @property
    def policy(self) -> Policy:
        """The usual one, as it is served now: its file may change while the server runs."""
        offer = self.serving.offer
        return offer.entries[offer.usual].policy

    @cached_property
    def known(self) -> dict[tuple[str, int], Feature]:
        """All features with evidence, by site and number; of one that is in several sets, the last one's."""
        return {(s.site, f.id): f for s in self.features for f in s.features}
