"""What is on offer: policies and their levels as model ids, read again when their files change."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demur.errors import DemurError, PolicyError, SettingsError
from demur.models import embedded
from demur.models.load import LanguageModel
from demur.records import Policy
from demur.records.policy import LEVELS, LevelName
from demur.sae.sae import SAE
from demur.server.impact import ImpactCard
from demur.steering.explain import Known
from demur.steering.policies import find_policy, known_features, load_saes, policy_files
from demur.steering.session import check

log = logging.getLogger("demur.server")


KEPT = 256
"""Choices of level by kind of harm, which requests make, that are kept of each policy."""


class NotOfferedError(PolicyError):
    """A model id, a policy or a level that this server does not have, or that its operator does not allow."""


@dataclass(frozen=True)
class Picked:
    """The policy of one request."""

    model: str
    """Its model id."""
    name: str
    """The policy's own, without the level."""
    level: LevelName
    policy: Policy
    hash: str
    known: Known
    """Features whose evidence may be quoted."""


@dataclass
class Entry:
    """One policy, as it was last read."""

    source: str
    """Name or path, as it was given."""
    policy: Policy
    known: Known
    stamp: tuple[tuple[str, int, int], ...]
    """Of each of its files: path, time of the last change (ns), size."""
    picked: dict[tuple[str, tuple[tuple[str, str], ...]], Picked] = field(default_factory=dict)


class Offer:
    """The policies that a server has, the first of them the usual one."""

    def __init__(
        self,
        lm: LanguageModel,
        saes: dict[str, SAE],
        sources: Sequence[str],
        card: ImpactCard,
        folders: Sequence[Path] = (),
    ) -> None:
        """Reads the policies; SAEs that they need are added to `saes`.

        Raises:
            PolicyError, SAEError, FileError: a policy that cannot be used with the model.
            SettingsError: two policies of one name, or a level that the card wants and a policy does not have.
        """
        self.lm, self.saes, self.card, self.folders = lm, saes, card, folders
        self.base = "smollm2-135m" if lm.name == embedded.NAME else Path(lm.name).name.lower()
        """The model's part of the ids."""
        self.entries: dict[str, Entry] = {}
        self.reloads = {"read": 0, "refused": 0}
        for source in sources:
            entry = self._read(source)
            if entry.policy.name in self.entries:
                raise SettingsError(f"two policies are called {entry.policy.name}; give one of them another `name`.")
            self.entries[entry.policy.name] = entry
        self.usual = next(iter(self.entries))

    def ids(self) -> list[str]:
        """All model ids."""
        return [self._id(name, level) for name, e in self.entries.items() for level in self._levels(e.policy)]

    def pick(
        self, model: str, policy: str | None = None, level: str | None = None, kinds: Mapping[str, str] | None = None
    ) -> Picked:
        """The policy that a request is for: by its model id, and by what it says beside it.

        Raises:
            NotOfferedError: there is none, or the operator does not allow it.
            PolicyError: a kind of harm that the policy does not tell apart.
        """
        named, at = self._parsed(model)
        name = policy or named
        entry = self.entries.get(name)
        if entry is None:
            raise NotOfferedError(f"there is no policy {name!r} here; there are {', '.join(self.entries)}.")
        have = self._levels(entry.policy)
        usual = self.card.level if self.card.level in have else have[-1]
        wanted = level or at or usual
        for asked in (wanted, *(kinds or {}).values()):
            if asked not in have:
                raise NotOfferedError(f"policy {name} is not offered at level {asked!r}; it is at {', '.join(have)}.")
        fixed = {} if entry.policy.gate is None else self.card.hazards
        by_kind = {**(kinds or {}), **fixed}
        key = (wanted, tuple(sorted(by_kind.items())))
        if key not in entry.picked:
            while len(entry.picked) >= KEPT:
                entry.picked.pop(next(iter(entry.picked)))
            made = at_level(entry.policy, wanted, by_kind)
            picked = Picked(self._id(name, wanted), name, wanted, made, made.hash, entry.known)  # type: ignore[arg-type]
            entry.picked[key] = picked
            return picked
        return entry.picked[key]

    def refresh(self) -> None:
        """Reads again the policies whose files have changed; one that cannot be used is logged, and the old one stays."""
        for name, entry in list(self.entries.items()):
            if (stamp := stamped(entry.source)) == entry.stamp:
                continue
            try:
                new = self._read(entry.source)
            except DemurError as error:
                entry.stamp = stamp  # complained of once, and tried again when it changes again
                self.reloads["refused"] += 1
                log.warning("policy %s has changed and cannot be used; the one before stays: %s", name, error)
                continue
            self.entries[name] = new
            self.reloads["read"] += 1
            log.info("policy %s was read again: %s → %s", name, entry.policy.hash, new.policy.hash)

    def _read(self, source: str) -> Entry:
        stamp = stamped(source)
        policy = find_policy(source)
        if any(site not in self.saes for site in policy.featured):
            for site, sae in load_saes(self.lm, [policy], self.folders).items():
                self.saes.setdefault(site, sae)  # those that others use stay as they are
        if ":" in policy.name or "/" in policy.name:
            raise SettingsError(
                f"policy {policy.name} is one level of another; give that one, its levels are model ids."
            )
        check(policy, self.lm, self.saes)
        if policy.gate is not None and self.card.level not in (have := levels_of(policy)):
            raise SettingsError(
                f"the impact card has level {self.card.level}, policy {policy.name} has {', '.join(have)}."
            )
        if policy.gate is not None and self.card.hazards:
            at_level(policy, self.card.level, self.card.hazards)
        return Entry(source, policy, known_features(policy), stamp)

    def _levels(self, policy: Policy) -> list[str]:
        have = levels_of(policy)
        return [level for level in have if level in self.card.allowed] or [have[-1]]

    def _id(self, name: str, level: str) -> str:
        return f"{self.base}:{level}" if name == self.usual else f"{self.base}/{name}:{level}"

    def _parsed(self, model: str) -> tuple[str, str | None]:
        # Policy and level of a model id; the bare name of the model is the usual policy.
        body, _, level = model.partition(":")
        base, _, name = body.partition("/")
        if body == self.lm.name:
            base, name = self.base, ""
        if base != self.base or (level and level not in LEVELS):
            raise NotOfferedError(f"there is no model {model[:120]!r} here; there are {', '.join(self.ids())}.")
        return name or self.usual, level or None


def levels_of(policy: Policy) -> list[str]:
    """The levels that a policy has, from the mildest on; without any of its own, `standard` is the policy as it is."""
    if policy.is_plain:
        return ["off"]
    if policy.gate is None or not policy.levels:
        return ["off", "standard"]
    return [level for level in LEVELS if level == "off" or level in policy.levels]


def at_level(policy: Policy, level: str, kinds: Mapping[str, str]) -> Policy:
    """A policy at a level; see `levels_of`.

    Raises:
        PolicyError: a level or a kind of harm that it does not have.
    """
    if policy.is_plain or (level == "standard" and level not in policy.levels and not kinds):
        return policy
    if level == "standard" and level not in policy.levels:
        raise PolicyError(f"policy {policy.name} has one level alone, so no kind of harm can have another.")
    return policy.at_level(level, kinds)


def stamped(source: str) -> tuple[tuple[str, int, int], ...]:
    """Path, time and size of each file that a policy is read from; a file that is gone counts as empty."""
    found = []
    for path in policy_files(source):
        try:
            stat = path.stat()
            found.append((str(path), stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((str(path), 0, 0))
    return tuple(found)
