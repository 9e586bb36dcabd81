"""What a feature does when it is raised: to the odds of a refusal, to harmful requests, to harmless ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from demur.errors import PolicyError
from demur.evaluation.judging.judges import Judge
from demur.evaluation.judging.rules import rules
from demur.evaluation.outcomes import transcript
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel, ModelSettings, load
from demur.progress import bar
from demur.records import (
    Edit,
    FeatureSet,
    Intervention,
    Message,
    Outcome,
    Policy,
    Positions,
    Prompt,
    Push,
    Transcript,
)
from demur.sae.exchange.formats import open_sae
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
    judge: Judge = rules
    """What is called a refusal while features are tried."""
    others: Mapping[str, SAE] = field(default_factory=dict)
    """SAEs at other sites, where sensors read features."""

    @classmethod
    def open(cls, sae: Path, model: ModelSettings) -> "Bench":
        """An SAE in any format that demur knows, on its model.

        Raises:
            FileError, SAEError, ModelError: either cannot be had, or they do not fit.
        """
        opened = open_sae(sae)
        lm = load(model)
        opened.check_width(lm.d_model)
        return cls(lm, opened.to(next(lm.model.parameters())))

    @classmethod
    def of(cls, found: FeatureSet, saes: Sequence[Path], model: ModelSettings) -> "Bench":
        """The model and the SAE that features were found with, and the SAEs that their sensors read besides.

        Raises:
            PolicyError: the features are of another SAE, or an SAE that a sensor reads is not among those given.
            FileError, SAEError, ModelError: something cannot be had, or does not fit.
        """
        opened = [open_sae(path) for path in saes]
        given = ", ".join(f"{s.config.site} ({s.hash})" for s in opened)
        main = next((s for s in opened if s.hash == found.sae_hash), None)
        if main is None:
            raise PolicyError(
                f"the features were found with the SAE {found.sae_hash} at {found.site}, given are {given}; give it with "
                "--sae, or find features again."
            )
        beside = {s.config.site: s for s in opened if s is not main and s.config.site != main.config.site}
        for site in found.read_at[1:]:
            if site not in beside or found.saes.get(site, beside[site].hash) != beside[site].hash:
                raise PolicyError(
                    f"a sensor reads features at {site}{f' of the SAE {h}' if (h := found.saes.get(site)) else ''}, given "
                    f"are {given}; give that SAE with --sae too."
                )
        lm = load(model)
        like = next(lm.model.parameters())
        for sae in opened:
            sae.check_width(lm.d_model)
        return cls(lm, main.to(like), others={site: sae.to(like) for site, sae in beside.items()})

    @property
    def saes(self) -> dict[str, SAE]:
        """Every SAE by its site, as steering wants them."""
        return {**self.others, self.sae.config.site: self.sae}

    def raising(self, values: dict[int, float], positions: Positions, name: str = "trial") -> Policy:
        """A policy without a gate that clamps features to values."""
        edits = tuple(Edit(feature=f, operation="clamp", value=v) for f, v in values.items())
        act = Intervention(site=self.sae.config.site, edits=edits, positions=positions)
        return self._trial(act, name, {self.sae.config.site: self.sae.hash})

    def pushing(self, vector: Float[Tensor, " d_model"], positions: Positions, name: str = "trial") -> Policy:
        """A policy without a gate that adds a vector at the SAE's site."""
        push = Push(vector="push", operation="add", value=1.0)
        act = Intervention(site=self.sae.config.site, pushes=(push,), positions=positions)
        return self._trial(act, name, {}).holding({"push": vector.float().cpu().numpy()})

    def _trial(self, act: Intervention, name: str, saes: dict[str, str]) -> Policy:
        return Policy(name=name, model=self.lm.name, model_hash=self.lm.hash, saes=saes, interventions=(act,))


def refusal_log_odds(
    bench: Bench,
    policies: Sequence[Policy],
    conversations: Sequence[Conversation],
    beginnings: Sequence[list[int]],
    what: str = "scoring features",
) -> list[float]:
    """For each policy: the log-odds that a reply begins as a refusal does, mean over prompts, in nats.

    `beginnings` are token ids, none of them the start of another, each teacher-forced after each prompt. The odds are
    against everything else the model could say, not against one compliant reply: whatever turns a reply to gibberish
    makes that one unlikely too.
    """
    pairs = [(c, r) for c in conversations for r in beginnings]
    scores = []
    with bar(what, len(policies)) as progress:
        for policy in policies:
            found = reply_log_probs(
                bench.lm, bench.saes, [c for c, _ in pairs], [policy] * len(pairs), [r for _, r in pairs]
            )
            log_p = torch.stack([f.sum() for f in found]).view(len(conversations), len(beginnings)).logsumexp(1)
            scores.append(float((log_p - torch.log1p(-log_p.exp().clamp_max(1 - 1e-6))).mean()))
            progress.step()
    return scores


@dataclass(frozen=True)
class Answer:
    """A reply and what the judge makes of it."""

    text: str
    outcome: Outcome | None
    """None where the judge could not say."""
    said: Transcript


def answers(
    bench: Bench,
    asked: Sequence[tuple[Policy, Prompt]],
    max_new_tokens: int = 40,
    what: str = "trying features",
    **how: Any,
) -> list[Answer]:
    """Replies to prompts, each under its policy, judged; all policies share batches, a row each.

    They are greedy unless `how` says otherwise (`GenerationSettings`).
    """
    found: list[Transcript | None] = [None] * len(asked)
    settings = GenerationSettings(max_new_tokens=max_new_tokens, **how)
    with bar(what, len(asked)) as progress:
        replies = generate(
            bench.lm, bench.saes, [p.conversation for _, p in asked], [q for q, _ in asked], settings, bench.batch
        )
        for i, reply in replies:
            policy, prompt = asked[i]
            found[i] = transcript(prompt, policy, "trial", reply)
            progress.step()
    made = [t for t in found if t is not None]
    return [Answer(t.reply, v.outcome, t) for t, v in zip(made, bench.judge.judge(made), strict=True)]


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
    what: str = "trying features",
) -> list[Tried]:
    """Generates under each policy and counts what the judge says."""
    prompts = [*harmful, *benign]
    outcomes = [a.outcome for a in answers(bench, [(q, p) for q in policies for p in prompts], what=what)]
    found = []
    for start in range(0, len(outcomes), len(prompts)):
        bad, good = outcomes[start : start + len(harmful)], outcomes[start + len(harmful) : start + len(prompts)]
        found.append(
            Tried(
                refused=bad.count("refused") / len(bad),
                degenerate=(bad + good).count("degenerate") / len(prompts),
                benign_refused=good.count("refused") / len(good) if good else 0.0,
            )
        )
    return found
