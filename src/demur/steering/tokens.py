"""What a gate reads, token by token: which word of a prompt adds how much to its score, and by which features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from demur.activations.harvest import read
from demur.models.chat import Role, render, tokens_and_roles
from demur.models.load import LanguageModel
from demur.records import FeatureSensor, Gate, JoinedSensor, Message, Reader
from demur.sae.sae import SAE
from demur.steering.session import TAIL, begins_last_turn


@dataclass(frozen=True)
class TokenRead:
    """One token that a gate read."""

    text: str
    of_prompt: bool
    """False for the end of the template, which leads over to the reply."""
    features: tuple[tuple[str, int, float], ...]
    """Site, number and share of the score of each feature that counts here, the largest first."""

    @property
    def share(self) -> float:
        """What the token adds to the score, in the score's units."""
        return sum((share for _, _, share in self.features), 0.0)


@torch.inference_mode()
def by_token(
    lm: LanguageModel, saes: Mapping[str, SAE], gate: Gate, messages: Sequence[Message], last_turn: bool = False
) -> tuple[TokenRead, ...]:
    """The tokens that a gate's sparse sensors read of a conversation, or of its last turn; their shares and the biases make
    its score.

    A sensor that pools by maximum counts a feature where it is strongest; one that takes the mean, everywhere.

    Raises:
        PromptError: the conversation does not fit the context.
    """
    ids, roles = tokens_and_roles(lm, messages)
    templated = lm.tokenizer.chat_template is not None
    text = render(lm, messages)
    spans = lm.tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)["offset_mapping"]
    own = [i for i, r in enumerate(roles) if r in (Role.USER, Role.ASSISTANT) or i >= len(roles) - TAIL]
    if last_turn:
        user, words = (
            torch.tensor([[r in kept for r in roles]]) for kept in ((Role.USER,), (Role.USER, Role.ASSISTANT))
        )
        own = [i for i in own if i >= begins_last_turn(user, words)[0]]
    found: list[list[tuple[str, int, float]]] = [[] for _ in own]
    parts = _parts(gate.sensor)
    sites = sorted({s.site for s, _ in parts})
    streams = read(lm, sites, torch.tensor([ids], device=lm.device)) if sites else {}
    for sensor, factor in parts:
        stream = streams[sensor.site][0][own]
        features = torch.tensor(sensor.features, device=stream.device)
        share = _shares(saes[sensor.site].read(stream, features).float().cpu(), sensor) * factor
        for place, column in share.nonzero().tolist():
            found[place].append((sensor.site, sensor.features[column], float(share[place, column])))
    return tuple(
        TokenRead(
            text=text[slice(*spans[i])],
            of_prompt=roles[i] in (Role.USER, Role.ASSISTANT),
            features=tuple(sorted(features, key=lambda f: -abs(f[2]))),
        )
        for i, features in zip(own, found, strict=True)
    )


def _parts(sensor: Reader | JoinedSensor, factor: float = 1.0) -> list[tuple[FeatureSensor, float]]:
    # The sparse sensors of a sum, each with its weight. Of any and all the parts are read as they are; what is after
    # `not` is no reason to open.
    if isinstance(sensor, FeatureSensor):
        return [(sensor, factor)]
    if not isinstance(sensor, JoinedSensor) or sensor.rule == "not":
        return []
    weights = sensor.weights if sensor.rule == "sum" else (1.0,) * len(sensor.of)
    return [found for part, w in zip(sensor.of, weights, strict=True) for found in _parts(part, factor * w)]


def _shares(f: Float[Tensor, "tokens features"], sensor: FeatureSensor) -> Float[Tensor, "tokens features"]:
    # What of each activation the pooled one is made of, times the feature's weight.
    if sensor.pooling == "mean":
        kept = f / len(f)
    elif sensor.pooling == "last":
        kept = torch.zeros_like(f)
        kept[-1] = f[-1]
    else:
        first = torch.zeros_like(f).scatter_(0, f.argmax(0, keepdim=True), 1.0)
        kept = f * first
    return kept * torch.tensor(sensor.weights)
