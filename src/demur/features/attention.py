"""An attention probe for harm: small, not linear, and fitted to the stream of every token that a gate reads.

A mean over tokens drowns the few that make a request harmful, and a maximum listens to any; heads learn which to weigh
(attention probes: McKenzie et al., arXiv 2506.10805).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from demur.features.reading import Streams
from demur.features.sensors import weights_of
from demur.progress import bar

EPOCHS, PER_STEP, FEWEST_STEPS = 4, 64, 400
"""How often each prompt is drawn, on average; prompts in a step of the optimiser; steps where prompts are few."""
RATE, DECAY = 2e-3, 0.2
"""Learning rate of AdamW, which falls to zero, and its weight decay."""
NOISE = 0.6
"""Gaussian noise added to the standardised stream while fitting: with little of it a probe of this size learns prompts by
heart."""
DROPOUT = 0.2
LONGEST = 160
"""Last tokens of a prompt that are fitted to; all are read in use."""


class AttentionProbe(nn.Module):
    """`bias + w · gelu(Σ_t softmax_t(Q x_t) (V x_t + c))`, as `records.AttentionSensor` says, of a standardised stream."""

    def __init__(self, centre: Tensor, scale: Tensor, heads: int, width: int) -> None:
        super().__init__()
        self.centre, self.scale, self.heads = centre, scale, heads
        self.query = nn.Linear(len(centre), heads, bias=False)
        nn.init.zeros_(self.query.weight)  # a mean at first
        self.value = nn.Linear(len(centre), heads * width)
        self.out = nn.Linear(heads * width, 1)

    def forward(
        self, x: Float[Tensor, "rows tokens d_model"], real: Tensor, noise: float = 0.0
    ) -> Float[Tensor, " rows"]:
        """Log-odds of harm."""
        x = (x - self.centre) / self.scale
        if noise:
            x = x + noise * torch.randn_like(x)
        share = self.query(x).masked_fill(~real[..., None], -torch.inf).softmax(1)
        values = self.value(x).unflatten(-1, (self.heads, -1))
        z = (share[..., None] * values).sum(1).flatten(1)
        return self.out(F.gelu(F.dropout(z, DROPOUT, self.training)))[:, 0]

    @torch.no_grad()
    def scores(self, streams: Streams, rows: Sequence[int], batch: int = 128) -> Float[Tensor, " rows"]:
        """Log-odds of harm of some prompts, in the order given."""
        self.eval()
        rows = list(rows)
        found = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: int(streams.starts[rows[i] + 1] - streams.starts[rows[i]]))
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            found[group] = self(*streams.batch([rows[i] for i in group]))
        return found

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """What an `AttentionSensor` reads by, with centre and scale folded in: it takes the stream as it is."""
        query, value = self.query.weight / self.scale, self.value.weight / self.scale
        # The same for every token, the centre does not matter to a softmax.
        found = {
            "query": query,
            "value": value,
            "value_bias": self.value.bias - value @ self.centre,
            "out": self.out.weight[0],
        }
        return {name: array.numpy() for name, array in found.items()}

    @property
    def bias(self) -> float:
        """That of the score."""
        return float(self.out.bias)


def fit_attention(
    streams: Streams,
    harmful: Sequence[bool],
    groups: Sequence[str],
    rows: Sequence[int],
    heads: int = 16,
    width: int = 16,
    seed: int = 0,
) -> AttentionProbe:
    """A probe fitted to the prompts `rows`, drawn by weights under which every group counts by the root of its size."""
    generator = np.random.default_rng(seed)
    label = np.asarray(harmful)[list(rows)]
    weight = weights_of(label, [groups[i] for i in rows])
    weight = weight / weight.sum()
    steps = max(FEWEST_STEPS, EPOCHS * len(rows) // PER_STEP)
    some = streams.x[:: max(1, len(streams.x) // 50_000)].float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = AttentionProbe(some.mean(0), some.std(0) + 1e-6, heads, width)
        adam = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)
        with bar("fitting attention", steps) as progress:
            for step in range(steps):
                drawn = generator.choice(len(rows), PER_STEP, p=weight)
                probe.train()
                adam.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 30) * (1 - step / steps)
                x, real = streams.batch([rows[i] for i in drawn], LONGEST)
                wanted = torch.from_numpy(label[drawn]).float()
                loss = F.binary_cross_entropy_with_logits(probe(x, real, NOISE), wanted)
                adam.zero_grad()
                loss.backward()
                adam.step()
                progress.step(figures=f"{loss.item():.2f} nats")
    return probe.eval().requires_grad_(False)
