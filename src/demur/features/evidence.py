"""What a person reads to judge what a feature means: where it fires, and which words it writes when raised."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from demur.activations.harvest import read_in_passes
from demur.features.branches import Branches
from demur.features.effect import Bench, Conversation
from demur.models.load import LanguageModel
from demur.records import Evidence
from demur.sae.sae import SAE

CONTEXTS, WORDS, AROUND = 5, 10, 12
TOGETHER = 16
"""Texts read in one pass."""


def evidence(
    bench: Bench, levels: Mapping[int, float], texts: Sequence[list[int]], conversations: Sequence[Conversation]
) -> dict[int, Evidence]:
    """For each feature (and the value it is raised to): contexts from `texts`, words in answer to `conversations`.

    Texts are token ids of what we wrote: contexts are printed and shipped, so they must be ours to print.
    """
    features = list(levels)
    peaks = _peaks(bench.lm, bench.sae, features, texts)
    # Measured, not read off the weights: which first words of a reply gain and lose most probability, on average.
    trials = [{}, *({f: level} for f, level in levels.items())]
    plain, *raised = Branches(bench).first_words(trials, conversations, "reading the words that features write")
    found = {}
    for j, (feature, words) in enumerate(zip(features, raised, strict=True)):
        best = [i for i in peaks[0][:, j].argsort(descending=True).tolist()[:CONTEXTS] if peaks[0][i, j] > 0]
        found[feature] = Evidence(
            contexts=tuple(_context(bench.lm, texts[i], int(peaks[1][i, j])) for i in best),
            raised=_words(bench.lm, words - plain),
            lowered=_words(bench.lm, plain - words),
        )
    return found


def _peaks(lm: LanguageModel, sae: SAE, features: Sequence[int], texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    # The strongest activation of each feature in each text, and its position; the first token is an attention sink.
    values = torch.zeros(len(texts), len(features))
    places = torch.zeros(len(texts), len(features), dtype=torch.long)
    wanted = torch.tensor(features, device=lm.device)
    for group, streams in read_in_passes(lm, [sae.config.site], texts, TOGETHER, "collecting contexts"):
        for row, i in enumerate(group):
            values[i], where = sae.read(streams[sae.config.site][row, 1 : len(texts[i])], wanted).max(0)
            places[i] = where + 1
    return values, places


def _context(lm: LanguageModel, text: list[int], place: int) -> str:
    decode = lm.tokenizer.decode
    before, after = text[max(0, place - AROUND) : place], text[place + 1 : place + AROUND]
    return f"{decode(before)}«{decode(text[place : place + 1])}»{decode(after)}"


def _words(lm: LanguageModel, gain: Tensor) -> tuple[str, ...]:
    return tuple(lm.tokenizer.decode([i]).strip() for i in gain.topk(WORDS).indices.tolist())
