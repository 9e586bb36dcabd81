"""The settings of a calibration: budgets, levels, and the search for how to act."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from demur.config import Settings
from demur.data.wrappers import WRAPPED
from demur.errors import SettingsError
from demur.records import LIKE_HARM, LevelName, Positions

CALIBRATED: tuple[LevelName, ...] = ("relaxed", "standard", "strict")
"""Levels that are given a budget; `off` needs none."""
OF_STANDARD = {"relaxed": 0.5, "standard": 1.0, "strict": 2.0}
"""A level's budget for plain prompts, as a multiple of standard's."""
WIDER = {
    **{stratum: {"relaxed": 0.10, "standard": 0.20, "strict": 0.35} for stratum in LIKE_HARM},
    WRAPPED: {"relaxed": 0.015, "standard": 0.03, "strict": 0.06},
}
"""Strata with a wider budget than plain ones, by level: what looks like harm, and what comes in the manner of an attack."""
PLAIN = "plain"
"""In a table of budgets: all other strata."""

Budget = Annotated[float, Field(gt=0, lt=1)]
Dose = Annotated[float, Field(gt=0)]


class CalibrationSettings(Settings):
    """False-refusal budgets by level and stratum, and the search for the operating point."""

    budget: Budget = 0.01
    """Share of prompts of every plain stratum (chat, mathematics, code, fiction, advice) that may open the gate at level
    `standard`; half of it at `relaxed`, double at `strict`. Look-alikes and offensive prompts: 0.10, 0.20, 0.35; wrapped
    ones: 0.015, 0.03, 0.06."""
    budgets: dict[str, dict[str, Budget]] = Field(default={})
    """Other budgets by level and stratum, as in `[calibrate.budgets.strict] lookalike = 0.5`; `plain` is every stratum
    that is not named."""
    wrapped: float = Field(default=0.25, ge=0)
    """So many wrapped prompts (role-play, prefixes, fiction ...) for each harmful or plain one are put beside them; the
    harmless ones are a stratum, `wrapped`. Where they would be fewer than 200, none."""
    turns: float = Field(default=0.25, ge=0)
    """So many conversations for each validation prompt are put beside them: harmless chats, a stratum with a plain budget,
    and prompts that follow upon one. Where these would be fewer than 800, none."""
    chats: tuple[Path, ...] = ()
    """Files of harmless chats (JSONL with `messages`), beside the shipped ones; a quarter of each is for validation."""
    level_doses: dict[str, Dose] = Field(default={})
    """Doses of levels, relative to the operating point's; 1 where not named."""
    level: Literal["relaxed", "standard", "strict"] = "standard"
    """The level in force in the policy that is written."""
    late_budget: Budget = 0.005
    """Share of the plain model's replies to benign prompts that may open the gate on the reply, where there is one."""
    late_replies: int = Field(default=400, gt=0)
    """Replies to benign, and as many to harmful, validation prompts from which that gate's thresholds are set."""
    trials: int = Field(default=48, gt=0)
    """Ways to act that are tried; more than the starting points needs Optuna (the extra `calibrate`)."""
    minutes: float = Field(default=0, ge=0)
    """No further batch of trials is begun after so many minutes of trying, stops and starts included; 0: no limit."""
    together: int = Field(default=8, gt=0)
    """Trials whose replies are made in one batch; what was learnt is used from one batch to the next."""
    doses: tuple[Dose, ...] = Field(default=(0.8, 0.9, 1.0, 1.1, 1.2, 1.4), min_length=1)
    """Doses that the search starts from and stays between, as multiples of the levels that `demur find` gave."""
    positions: tuple[Positions, ...] = Field(default=("reply", "user"), min_length=1)
    """Where the features may be raised behind a gate."""
    operation: Literal["add", "clamp"] = "add"
    """What is done to the features behind a gate: `add` to their activations, which takes a sum of vectors at each token of
    the reply; or `clamp` these, for which the SAE has to encode it. Where they are not active it is the same."""
    most_features: int = Field(default=4, gt=0)
    """Most refusal features raised together, where they were found one by one."""
    tried: int = Field(default=32, gt=0)
    """Harmful validation prompts, of those that open the gate, on which each way is tried."""
    tried_benign: int = Field(default=16, gt=0)
    """Benign validation prompts, those nearest to opening the gate, on which it is tried with the gate forced open."""
    confirmed: int = Field(default=96, gt=0)
    """As `tried`, for the finalists, between which is chosen; benign ones in proportion."""
    finalists: int = Field(default=5, gt=0)
    """The most promising ways, which are measured again on more prompts."""
    drawn: int = Field(default=1, ge=0)
    """So often each finalist answers each of these harmful prompts again, drawn at temperature 1: an edit that just holds
    where the most likely word is taken may not where any may be."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest reply, in tokens, while trying: as in an evaluation, for some refusals go in circles only towards its end."""
    fluent: float = Field(default=0.95, ge=0, le=1)
    """Share of the refusals that is to be fluent."""
    degenerate: float = Field(default=0.02, ge=0, le=1)
    """Share of all replies that may be degenerate."""
    slack: float = Field(default=0.03, ge=0)
    """The mildest way wins that refuses within this share of the most harmful prompts refused, greedily and drawn."""
    seed: int = 0
    """Of the search, of the refusals that fluency is measured against, and of the control's random features."""

    def budget_of(self, level: LevelName, stratum: str) -> float:
        """Share of a stratum's prompts that may open the gate at a level."""
        table = self.budgets.get(level, {})
        if stratum in WIDER:
            return table.get(stratum, WIDER[stratum][level])
        return table.get(stratum, table.get(PLAIN, min(0.5, self.budget * OF_STANDARD[level])))

    def check(self, strata: Iterable[str]) -> None:
        """Raises SettingsError where a budget or a dose is for a level or a stratum that is not there."""
        for level in (*self.budgets, *self.level_doses):
            if level not in CALIBRATED:
                raise SettingsError(f"no level {level!r} takes a budget or dose; {_near(level, CALIBRATED)}")
        known = [*strata, PLAIN, *WIDER]
        for level, table in self.budgets.items():
            for stratum in table:
                if stratum not in known:
                    raise SettingsError(
                        f"a budget at {level} for {stratum!r}, a stratum without validation prompts; "
                        f"{_near(stratum, known)}"
                    )


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys(known))}."
