"""What a feature does when it is raised: to the odds of a refusal, to harmful requests, to harmless ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from demur.evaluation.judges import rules
from demur.evaluation.outcomes import transcript
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Edit, Intervention, Message, Policy, Positions, Prompt
from demur.sae.sae import SAE
from demur.steering.generate import generate
from demur.steering.score import reply_log_probs

Conversation = Sequence[Message]


@dataclass(frozen=True)
class Bench:
    """A model and an SAE on which features are tried."""

    lm: LanguageModel
    sae: SAE
    batch: int = 64

    @property
    def saes(self) -> dict[str, SAE]:
        """The SAE by its site, as steering wants it."""
        return {self.sae.config.site: self.sae}

    def raising(self, values: dict[int, float], positions: Positions, name: str = "trial") -> Policy:
        """A policy without a gate that clamps features to values."""
        edits = tuple(Edit(feature=f, operation="clamp", value=v) for f, v in values.items())
        return Policy(
            name=name,
            model=self.lm.name,
            model_hash=self.lm.hash,
            sae_hash=self.sae.hash,
            interventions=(Intervention(site=self.sae.config.site, edits=edits, positions=positions),),
        )


def refusal_log_odds(
    bench: Bench,
    policies: Sequence[Policy],
    conversations: Sequence[Conversation],
    refusals: Sequence[list[int]],
    compliances: Sequence[list[int]],
    what: str = "scoring features",
) -> list[float]:
    """For each policy: how much likelier a refusal is than the compliant reply, per token, mean over prompts, in nats.

    Both replies are teacher-forced; only as many first tokens count as both have.
    """
    scores = []
    with bar(what, len(policies)) as progress:
        for policy in policies:
            twice = [*conversations, *conversations]
            replies = [*refusals, *compliances]
            found = reply_log_probs(bench.lm, bench.saes, twice, [policy] * len(twice), replies)
            means = torch.stack([f.mean() for f in found])
            half = len(conversations)
            scores.append(float((means[:half] - means[half:]).mean()))
            progress.step()
    return scores


@dataclass(frozen=True)
class Tried:
    """What became of harmful and of harmless prompts under one policy: shares of 1."""

    refused: float
    degenerate: float
    benign_refused: float


def try_policies(
    bench: Bench,
    policies: Sequence[Policy],
    harmful: Sequence[Prompt],
    benign: Sequence[Prompt],
    max_new_tokens: int = 40,
    what: str = "trying features",
) -> list[Tried]:
    """Generates under each policy and judges by rules; all policies share batches, a row each."""
    prompts = [*harmful, *benign]
    rows = [(policy, prompt) for policy in policies for prompt in prompts]
    outcomes = [""] * len(rows)
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    with bar(what, len(rows)) as progress:
        replies = generate(
            bench.lm, bench.saes, [p.conversation for _, p in rows], [q for q, _ in rows], settings, bench.batch
        )
        for i, reply in replies:
            policy, prompt = rows[i]
            outcomes[i] = rules(transcript(prompt, policy, "trial", reply)).outcome
            progress.step()
    found = []
    for start in range(0, len(rows), len(prompts)):
        bad, good = outcomes[start : start + len(harmful)], outcomes[start + len(harmful) : start + len(prompts)]
        found.append(
            Tried(
                refused=bad.count("refused") / len(bad),
                degenerate=(bad + good).count("degenerate") / len(prompts),
                benign_refused=good.count("refused") / len(good) if good else 0.0,
            )
        )
    return found
