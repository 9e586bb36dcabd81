"""Upheld appeals calibrated in: a policy that answers those prompts and what is near them, and is else what it was.

A gate's threshold cannot do this. What people appeal against scores as what is harmful does; a threshold above it would
let half of the harm through. So each upheld prompt becomes a direction in the residual stream, and the gate stays shut
where a prompt lies far enough along one of them: `all(harm, not(any(pardons)))`.

The direction is that of a linear discriminant of one example against everything else (Hariharan, Malik & Ramanan,
"Discriminative decorrelation", ECCV 2012): with `a` the mean of the stream over the prompt's tokens, `μ` and `S` mean and
shrunk covariance over known prompts, `near(x) = (x − μ)ᵀ S⁻¹ (a − μ)`, scaled to 1 at `a`; an average prompt has 0. Harmful
prompts that are known to be near (rejected appeals, and others of the same file) are held at 0 by it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from demur.calibration.thresholds import promise
from demur.config import Settings
from demur.errors import PolicyError
from demur.evaluation.statistics import Rate
from demur.features.dense import read_dense
from demur.models.load import LanguageModel
from demur.records import Gate, JoinedSensor, Policy, ProbeSensor, Prompt, PromptSet, Reader
from demur.sae.sae import SAE
from demur.steering.generate import decide

NAME = "pardoned"
PREFIX = "pardon "
STEEP = 1000.0
"""A unit of nearness in the units of the gate's score: so much that nearness decides or does not, and the score of what is
not near stays that of the harm sensor, on which levels and thresholds are set."""
RIDGE = 1e-3
"""Of the small system that holds known harm at 0, as a share of its diagonal."""


class PardonSettings(Settings):
    """How far a pardon reaches, and what it may cost."""

    reach: float = Field(default=0.3, gt=0, lt=1)
    """Nearness from which on a prompt is taken for one that was upheld: 1 is that prompt, 0 an average one."""
    harm_budget: float = Field(default=0.01, gt=0, lt=1)
    """Share of the harmful validation prompts at which the gate opens, at the strictest of its levels, that may lie within
    reach of any; where more do, the reach is shortened. (At the others a pardon changes nothing.)"""
    shrink: float = Field(default=1.0, gt=0)
    """Added to the covariance, as a share of its mean variance."""
    known: int = Field(default=700, gt=0)
    """Known prompts from which mean and covariance are taken."""


def pardon(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    policy: Policy,
    appeals: PromptSet,
    known: PromptSet,
    validation: PromptSet,
    settings: PardonSettings,
) -> Policy:
    """The policy with every upheld appeal pardoned; what it pardoned before is pardoned only if it is among them.

    Args:
        lm: The policy's model.
        saes: The SAEs that it needs.
        policy: One with a gate on the prompt.
        appeals: As `demur feedback export` writes them: upheld ones are benign, rejected ones harmful.
        known: Prompts of both labels, to which nothing is fitted but a mean and a covariance.
        validation: Prompts of which the harmful ones limit the reach.
        settings: See `PardonSettings`.

    Raises:
        PolicyError: a policy without a gate, or for another model.
        PromptError: no upheld appeal, no harmful validation prompts.
    """
    if policy.gate is None:
        raise PolicyError(f"policy {policy.name} has no gate to be kept shut; give one that has, such as gated.")
    policy = unpardoned(policy)
    assert policy.gate is not None
    upheld, harm = appeals.where(label="benign").rows, validation.where(label="harmful").rows
    rejected = [row for row in appeals.rows if row.label == "harmful"]
    site = _site(policy)
    watched = {"upheld": upheld, "rejected": rejected, "harmful": harm}
    before = _decided(lm, saes, policy, watched)
    rows = [*upheld, *rejected, *known.sample(settings.known).rows, *harm]
    means = read_dense(lm, [site], [row.conversation for row in rows])[site].mean.double()
    ours, refused, usual, bad = means.split(
        [len(upheld), len(rejected), len(rows) - len(upheld) - len(rejected) - len(harm), len(harm)]
    )
    directions, offsets = discriminants(ours, refused, usual, settings)
    opens = min(
        [policy.gate.threshold, *policy.gate.thresholds.values(), *(at.threshold for at in policy.levels.values())]
    )
    nearness = (bad @ directions.T + offsets).amax(1).tolist()
    refusable = [near for near, seen in zip(nearness, before["harmful"], strict=True) if seen["gate"] >= opens]
    # With too few harmful prompts for this budget, none of them is in reach.
    line = max(settings.reach, promise(refusable, settings.harm_budget).threshold) if refusable else settings.reach
    made = _with(policy, policy.gate, site, upheld, directions, offsets - line)
    found: dict[str, Any] = {"reach": line, "upheld": [row.id for row in upheld], "open": {}}
    for name, after in _decided(lm, saes, made, watched).items():
        if after:
            found["open"][name] = {"before": _rate(before[name]), "after": _rate(after)}
    return made.model_copy(update={"receipt": policy.receipt | {"pardon": found}})


def discriminants(
    ours: Float[Tensor, "upheld d_model"],
    refused: Float[Tensor, "rejected d_model"],
    usual: Float[Tensor, "known d_model"],
    settings: PardonSettings,
) -> tuple[Float[Tensor, "upheld d_model"], Float[Tensor, " upheld"]]:
    """A direction and an offset for each upheld prompt: `near(x) = direction · x + offset`."""
    middle = usual.mean(0)
    spread = usual - middle
    covariance = spread.T @ spread / len(spread)
    covariance += settings.shrink * covariance.diagonal().mean() * torch.eye(len(middle), dtype=covariance.dtype)
    whitened = torch.linalg.inv(covariance)
    directions = []
    for a in ours - middle:
        direction = whitened @ a
        others = refused - middle
        near = others[others @ direction / (a @ direction) >= settings.reach / 2]
        basis = torch.cat([a[None], near])
        gram = basis @ whitened @ basis.T
        gram += RIDGE * torch.diag(gram.diagonal())
        target = torch.zeros(len(basis), dtype=gram.dtype)
        target[0] = 1
        direction = torch.linalg.solve(gram, target) @ basis @ whitened
        directions.append(direction / (a @ direction))
    stacked = torch.stack(directions)
    return stacked, -stacked @ middle


def unpardoned(policy: Policy) -> Policy:
    """The policy as it was before anything was pardoned."""
    gate = policy.gate
    if gate is None or not isinstance(gate.sensor, JoinedSensor) or gate.sensor.name != NAME:
        return policy
    held = policy._vectors.arrays if policy._vectors else {}
    left = {name: v for name, v in held.items() if not name.startswith(PREFIX)}
    before = policy.model_copy(update={"gate": gate.model_copy(update={"sensor": gate.sensor.of[0]}), "vectors": ""})
    before._vectors = None
    return before.holding(left) if left else before


def _site(policy: Policy) -> str:
    # The first that is edited, as late as a gate may read; of a policy with a fixed reply, the last that its gate reads.
    assert policy.gate is not None
    edited = sorted((i.site for i in policy.interventions), key=lambda site: int(site.split(".")[0]))
    if not edited and not policy.gate.sites:
        raise PolicyError(
            f"policy {policy.name} asks a guard alone, and a pardon reads the model itself; give one that edits it, or "
            "whose gate also reads at a site."
        )
    return edited[0] if edited else policy.gate.sites[-1]


def _with(
    policy: Policy, gate: Gate, site: str, upheld: Sequence[Prompt], directions: Tensor, offsets: Tensor
) -> Policy:
    parts = tuple(
        ProbeSensor(name=PREFIX + row.id, site=site, vector=PREFIX + row.id, bias=STEEP * float(offset), pooling="mean")
        for row, offset in zip(upheld, offsets, strict=True)
    )
    near = JoinedSensor(rule="any", of=parts, thresholds=(0.0,) * len(parts), name="near an upheld appeal")
    far = JoinedSensor(rule="not", of=(near,), thresholds=(0.0,))
    both = JoinedSensor(name=NAME, rule="all", of=(gate.sensor, far), thresholds=(0.0, 0.0))
    held = dict(policy._vectors.arrays) if policy._vectors else {}
    held |= {PREFIX + row.id: (STEEP * v).float().numpy() for row, v in zip(upheld, directions, strict=True)}
    return policy.model_copy(update={"gate": gate.model_copy(update={"sensor": both})}).holding(held)


def _decided(
    lm: LanguageModel, saes: Mapping[str, SAE], policy: Policy, watched: Mapping[str, Sequence[Prompt]]
) -> dict[str, list[dict]]:
    return {
        name: decide(lm, saes, [row.conversation for row in rows], policy.prompt_only) for name, rows in watched.items()
    }


def _rate(decided: Sequence[dict]) -> dict[str, Any]:
    return Rate.of(sum(seen["open"] for seen in decided), len(decided)).model_dump()


def pardons(sensor: Reader | JoinedSensor) -> int:
    """How many appeals a gate's sensor pardons."""
    if not isinstance(sensor, JoinedSensor) or sensor.name != NAME:
        return 0
    far = sensor.of[1]
    near = far.of[0] if isinstance(far, JoinedSensor) else far
    return len(near.of) if isinstance(near, JoinedSensor) else 0
