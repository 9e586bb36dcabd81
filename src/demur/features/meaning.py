"""What features mean: what they fire on by kind of harm, what they do at several doses, what lies near them, and their
place in a tree of concepts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from demur.features.effect import Bench, try_policies
from demur.features.naming import distinctive, plain_name
from demur.features.reading import read_prompts
from demur.features.settings import FindSettings
from demur.records import Dose, Feature, Meaning, Prompt, PromptSet, evenly
from demur.sae.sae import SAE

NEAREST = 5
"""Neighbours that are named."""
KINDS = 8
"""Kinds that are named."""
LEVELS = (12, 4)
"""Concepts at each level of the tree, the narrower first: numbers that a person can look through."""


@dataclass(frozen=True)
class Fires:
    """On which prompts each feature fires."""

    on: Bool[Tensor, "prompts d_sae"]
    kinds: Sequence[str]
    """Of each prompt: its category if it is harmful, else what sort of harmless prompt it is."""

    @property
    def rates(self) -> tuple[list[str], Float[Tensor, "kinds d_sae"]]:
        """The kinds, and the share of each one's prompts on which each feature fires."""
        names = sorted(set(self.kinds))
        rows = [torch.tensor([k == name for k in self.kinds]) for name in names]
        return names, torch.stack([self.on[row].float().mean(0) for row in rows])


def kind_of(prompt: Prompt) -> str:
    """What sort of prompt it is."""
    return prompt.category or "harmful" if prompt.label == "harmful" else f"harmless: {prompt.kind or 'plain'}"


def read_kinds(bench: Bench, prompts: PromptSet, each: int) -> Fires:
    """Reads at most `each` prompts of every kind."""
    by: dict[str, list[Prompt]] = {}
    for row in prompts.rows:
        by.setdefault(kind_of(row), []).append(row)
    rows = [row for group in by.values() for row in evenly(group, each)]
    pooled = read_prompts(bench.lm, bench.sae, [row.conversation for row in rows], ["max"])["max"]
    return Fires(on=pooled > 0, kinds=[kind_of(row) for row in rows])


def nearest(sae: SAE, features: Sequence[int]) -> dict[int, dict[int, float]]:
    """For each feature those whose decoder rows are nearest to its own, with the cosines."""
    rows = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    cosines = rows[list(features)] @ rows.T
    cosines[torch.arange(len(features)), list(features)] = -torch.inf
    values, indices = cosines.topk(min(NEAREST, len(rows) - 1), dim=1)
    return {
        f: {int(i): float(v) for i, v in zip(near, cos, strict=True)}
        for f, near, cos in zip(features, indices, values, strict=True)
    }


def curves(
    bench: Bench,
    levels: Mapping[int, float],
    together: Mapping[int, float],
    prompts: Sequence[Prompt],
    doses: Sequence[float],
) -> tuple[dict[int, tuple[Dose, ...]], tuple[Dose, ...]]:
    """Harmful prompts refused when each feature alone, and when all of a set, are raised to shares of their levels."""
    trials = [{f: d * level} for f, level in levels.items() for d in doses]
    trials += [{f: d * level for f, level in together.items()} for d in doses] if together else []
    if not trials:
        return {}, ()
    tried = try_policies(bench, [bench.raising(t, "reply") for t in trials], prompts, [], what="trying doses")
    points = [
        Dose(dose=d, refused=t.refused, degenerate=t.degenerate)
        for d, t in zip([*doses] * (len(tried) // len(doses)), tried, strict=True)
    ]
    rows = [tuple(points[i : i + len(doses)]) for i in range(0, len(points), len(doses))]
    return dict(zip(levels, rows, strict=False)), rows[-1] if together else ()


def similarity(rows: Float[Tensor, "n d_model"], on: Bool[Tensor, "prompts n"]) -> Float[Tensor, "n n"]:
    """How alike features are, from 0 to 1: the mean of the cosine of their decoder rows, if above 0, and of the share of
    the prompts on which either fires that both fire on (Jaccard).
    """
    unit = torch.nn.functional.normalize(rows.float().cpu(), dim=1)
    x = on.float()
    both, each = x.T @ x, x.sum(0)
    either = each[:, None] + each[None, :] - both
    jaccard = torch.where(either > 0, both / either.clamp_min(1), torch.zeros(()))
    return ((unit @ unit.T).clamp(0, 1) + jaccard) / 2


def concept_tree(alike: Float[Tensor, "n n"], levels: Sequence[int] = LEVELS) -> list[list[int]]:
    """Of each feature, the number of its concept at each level, the widest first.

    Agglomerative clustering with average linkage (Sokal and Michener, 1958), cut at so many concepts a level; the cuts
    of one tree are nested.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    n = len(alike)
    if n < 2:
        return [[1] * len(levels) for _ in range(n)]
    apart = (1 - alike.double().numpy()).clip(0)
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform((apart + apart.T) / 2, checks=False), method="average")
    cuts = [fcluster(tree, min(count, n), criterion="maxclust").tolist() for count in sorted(levels)]
    return [[cut[i] for cut in cuts] for i in range(n)]


def with_meaning(
    bench: Bench, features: Sequence[Feature], train: PromptSet, validation: PromptSet, settings: FindSettings
) -> tuple[tuple[Feature, ...], tuple[Dose, ...]]:
    """The features with their meaning and a name, and the curve of all actuators together."""
    fires = read_kinds(bench, train, settings.each_kind)
    kinds, rates = fires.rates
    # Features that are raised singly were tried at their level, and perhaps at other positions; these belong together.
    actuators = {f.id: f.level for f in features if f.role == "actuator" and settings.method == "effect"}
    bad = validation.where(label="harmful").sample(settings.dosed).rows
    alone, together = curves(bench, actuators, actuators, bad, settings.doses)
    ids = list(dict.fromkeys(f.id for f in features))
    near = nearest(bench.sae, ids)
    paths = _paths(bench, features, fires, near)
    words = distinctive({f.id: f.evidence.contexts for f in features})
    found = []
    for f in features:
        order = rates[:, f.id].argsort(descending=True, stable=True)[:KINDS].tolist()
        meaning = Meaning(
            kinds={kinds[i]: round(float(rates[i, f.id]), 4) for i in order if rates[i, f.id] > 0},
            curve=alone.get(f.id, ()) if f.role == "actuator" else (),
            nearest=near[f.id],
            path=paths[f.id],
        )
        named = f.model_copy(update={"meaning": meaning})
        found.append(named.model_copy(update={"name": plain_name(named, words[f.id], float(rates[:, f.id].mean()))}))
    return tuple(found), together


def _paths(
    bench: Bench, features: Sequence[Feature], fires: Fires, near: Mapping[int, Mapping[int, float]]
) -> dict[int, tuple[str, ...]]:
    # The chosen features and their neighbours make the tree; only the chosen have contexts to name its concepts by.
    every = list(dict.fromkeys([*near, *(n for ids in near.values() for n in ids)]))
    places = concept_tree(similarity(bench.sae.W_dec[every], fires.on[:, every]))
    place = dict(zip(every, places, strict=True))
    found: dict[int, list[str]] = {f: [] for f in near}
    for level in range(len(LEVELS)):
        texts: dict[int, list[str]] = {}
        for f in features:
            texts.setdefault(place[f.id][level], []).extend(f.evidence.contexts)
        words = distinctive(texts)
        for f in near:
            found[f].append(", ".join(words[place[f][level]][:3]) or f"concept {place[f][level]}")
    return {f: tuple(path) for f, path in found.items()}
