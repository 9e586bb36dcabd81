"""What an SAE is for: whether harm and refusal can be read off a few of its features where the style is new, and how
much of the directions of harm and of refusal its reconstruction holds.

An SAE may explain the variance of web text well and miss both (Kissane et al., 2024; FAST, arXiv 2506.07691).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from demur.data.refusals import refusals
from demur.evaluation.judging.agreement import LABELS
from demur.evaluation.judging.fitting import group_of
from demur.features.effect import Bench
from demur.features.find import by_source
from demur.features.held_out import beside_a_probe
from demur.features.reading import read_prompts, read_said
from demur.records import HeldOut, Message, Prompt, PromptSet, Record, evenly
from demur.sae.sae import SAE

REPLY = 48
"""First tokens of a reply that are read: a refusal is one by then."""
SPANS = (1, 4, 16, 64)
"""Numbers of decoder rows in whose span a direction is sought."""
DRAWS = 32
"""Random directions beside it."""
KINDS = 4
"""Groups of categories that stand for sources where all prompts are of one source."""


class Direction(Record):
    """A difference of means of the residual stream, and what the SAE makes of it."""

    name: str
    about: str
    toward: int
    """Rows of the first mean."""
    away: int
    """Rows of the second."""
    cosine: float
    """With the difference of the means of the reconstructions."""
    kept: float
    """Length of the latter along it, as a share of its own."""
    explained: float
    """Share of the variance along it, over all rows, that the reconstructions have."""
    feature: int
    """Whose decoder row is nearest, either way round."""
    nearest: float
    """The cosine with it."""
    spanned: dict[int, float]
    """Share of its squared length in the span of so many decoder rows, sought greedily."""
    spanned_random: dict[int, float]
    """The same of random directions, mean: what so many of the rows can span of anything."""


class Purpose(Record):
    """Gates and directions of one kind: harm, read on prompts, or refusal, read on replies."""

    held_out: tuple[HeldOut, ...]
    """A sparse gate and a dense probe; of refusal, `harmful` and `benign` name the sources of refusing and of compliant
    replies."""
    direction: Direction
    rows: str
    """From what they were made."""


@dataclass(frozen=True)
class Said:
    """Labelled replies."""

    conversations: Sequence[Sequence[Message]]
    replies: Sequence[list[int]]
    refusing: Sequence[bool]
    sources: Sequence[str]


def harm(bench: Bench, prompts: PromptSet, per_source: int, sensors: int, seed: int) -> Purpose:
    """Harm read on prompts, and the difference of harmful and benign prompts at their last token (Arditi et al.).

    Raises:
        PromptError: too few sources, or categories of one source, to leave two out.
    """
    rows = [row for group in by_source(prompts).values() for row in evenly(group, per_source)]
    harmful, sources, how = [row.label == "harmful" for row in rows], *apart(rows)
    pools = read_prompts(
        bench.lm, bench.sae, [r.conversation for r in rows], ["max", "last"], residual=["mean", "last"]
    )
    groups = [f"{s} {row.kind}" for s, row in zip(sources, rows, strict=True)]
    gates = beside_a_probe(pools["max"], pools["residual mean"], harmful, sources, groups, sensors, seed)
    about = "harmful less benign prompts, at their last token (Arditi et al., 2406.11717)"
    stream, coded = pools["residual last"], pools["last"]
    return Purpose(
        held_out=gates,
        direction=direction("harm", about, bench.sae, stream, coded, harmful, seed),
        rows=f"{sum(harmful)} harmful and {len(rows) - sum(harmful)} benign prompts of {how}",
    )


def refusal(
    bench: Bench, labelled: Said, prompts: Sequence[Prompt], complied: Sequence[list[int]], sensors: int, seed: int
) -> Purpose:
    """Refusal read on labelled replies; and the difference of refusals and compliant replies to the same prompts.

    Args:
        bench: Model and SAE.
        labelled: Of several sources, refusing and not.
        prompts: Harmful ones.
        complied: What the model said to them by itself, as token ids.
        sensors: Features of the gate.
        seed: Of the refusals that we wrote, and of intervals.

    Raises:
        PromptError: too few sources to leave two out.
    """
    lm, sae, refusing, sources = bench.lm, bench.sae, labelled.refusing, labelled.sources
    pools = read_said(lm, sae, labelled.conversations, labelled.replies, ["max"], residual=["mean"])
    gates = beside_a_probe(pools["max"], pools["residual mean"], refusing, sources, sources, sensors, seed)
    ours = [coded(bench, text) for text in islice(refusals(seed), len(prompts))]
    talk = [p.conversation for p in prompts]
    both = read_said(lm, sae, [*talk, *talk], [*ours, *complied], ["mean"], residual=["mean"])
    toward = [True] * len(talk) + [False] * len(talk)
    about = "refusals that we wrote less the model's own replies to the same prompts, mean over the reply"
    stream, codes = both["residual mean"], both["mean"]
    return Purpose(
        held_out=gates,
        direction=direction("refusal", about, sae, stream, codes, toward, seed),
        rows=f"{sum(refusing)} refusing and {len(refusing) - sum(refusing)} compliant replies, labelled by people, of "
        f"{len(set(sources))} sources",
    )


def coded(bench: Bench, reply: str) -> list[int]:
    """The first tokens of a reply; never none."""
    return bench.lm.tokenizer(reply or " ", add_special_tokens=False)["input_ids"][:REPLY]


def said(bench: Bench, rows: Sequence[Mapping[str, str]], per_source: int) -> Said:
    """Replies that people call refusals or compliance, at most `per_source` of each source and label; others are left
    out: what is partial or broken is neither.
    """
    kept: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["label"] in ("refusal", "compliance"):
            kept.setdefault((group_of(row), row["label"]), []).append(row)
    chosen = [row for group in kept.values() for row in evenly(group, per_source)]
    return Said(
        conversations=[(Message(role="user", content=row["prompt"]),) for row in chosen],
        replies=[coded(bench, row["reply"]) for row in chosen],
        refusing=[LABELS[row["label"]] for row in chosen],
        sources=[group_of(row) for row in chosen],
    )


def apart(rows: Sequence[Prompt]) -> tuple[list[str], str]:
    """What is left out together, for each row, and in words: sources, or groups of categories where there is but one
    source, in which a request and its look-alike twin are together.
    """
    sources = [row.source or "unnamed" for row in rows]
    if len(set(sources)) > 1:
        return sources, f"{len(set(sources))} sources"
    places = {name: i for i, name in enumerate(sorted({row.category or row.kind or "" for row in rows}))}
    kinds = min(KINDS, len(places))
    names = [f"categories {places[row.category or row.kind or ''] % kinds + 1}" for row in rows]
    return names, f"one source, in {kinds} groups of categories"


def direction(
    name: str,
    about: str,
    sae: SAE,
    x: Float[Tensor, "rows d_model"],
    f: Float[Tensor, "rows d_sae"],
    toward: Sequence[bool],
    seed: int = 0,
) -> Direction:
    """The mean of the rows `toward` less that of the others, in the stream `x` and in what the SAE makes of it.

    `f` may be means of activations over tokens: decoding is linear, so their reconstruction is that of the means.
    """
    W_dec, where = sae.W_dec.float().cpu(), torch.tensor(toward)
    back = f @ W_dec + sae.b_dec.float().cpu()
    v, w = (rows[where].mean(0) - rows[~where].mean(0) for rows in (x, back))
    along, along_back = x @ (v / v.norm()), back @ (v / v.norm())
    cosines = torch.nn.functional.normalize(W_dec, dim=1) @ (v / v.norm())
    best = int(cosines.abs().argmax())
    draws = torch.randn(DRAWS, len(v), generator=torch.Generator().manual_seed(seed))
    return Direction(
        name=name,
        about=about,
        toward=int(where.sum()),
        away=int((~where).sum()),
        cosine=float(v @ w / (v.norm() * w.norm())),
        kept=float(v @ w / v.norm().square()),
        explained=1 - float((along - along_back).square().sum() / (along - along.mean()).square().sum()),
        feature=best,
        nearest=float(cosines[best]),
        spanned={n: share[0] for n, share in _spanned(W_dec, v[None]).items()},
        spanned_random={n: sum(share) / DRAWS for n, share in _spanned(W_dec, draws).items()},
    )


def _spanned(W_dec: Tensor, vectors: Tensor) -> dict[int, list[float]]:
    # By orthogonal matching pursuit (Pati et al., 1993): of each vector, what so many rows can make up.
    from sklearn.linear_model import orthogonal_mp

    rows = torch.nn.functional.normalize(W_dec.double(), dim=1)
    rows, targets = rows[W_dec.norm(dim=1) > 0].T.numpy(), vectors.double().T.numpy()
    found = {}
    for n in SPANS:
        if n <= min(rows.shape):
            weights: Any = orthogonal_mp(rows, targets, n_nonzero_coefs=n)
            weights = weights.reshape(rows.shape[1], -1)
            left = ((targets - rows @ weights) ** 2).sum(0) / (targets**2).sum(0)
            found[n] = (1 - left).tolist()
    return found
