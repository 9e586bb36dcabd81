"""An attention probe for harm: small, not linear, and fitted to the stream of every token that a gate reads.

A mean over tokens drowns the few that make a request harmful, and a maximum listens to any; heads learn which to weigh
(attention probes: McKenzie et al., arXiv 2506.10805).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from demur.features.reading import Streams
from demur.features.sensors import weights_of
from demur.progress import bar

EPOCHS, PER_STEP, FEWEST_STEPS = 8, 64, 400
"""How often each prompt is drawn, on average; prompts in a step of the optimiser; steps where prompts are few."""
MEMBERS = 3
"""Probes of which the score is the mean, each fitted for itself: one alone has a few prompts on which it is far out."""
RATE, DECAY = 2e-3, 0.2
"""Learning rate of AdamW, which falls to zero, and its weight decay."""
NOISE = 0.6
"""Gaussian noise added to the standardised stream while fitting: with little of it a probe of this size learns prompts by
heart."""
DROPOUT = 0.2


class AttentionProbe(nn.Module):
    """`bias + w · gelu(Σ_t softmax_t(Q x_t) (V x_t + c))`, as `records.AttentionSensor` says, of a standardised stream.

    The mean of several members, which is such a probe again: the heads of all, and their weights shared out.
    """

    def __init__(self, centre: Tensor, scale: Tensor, heads: int, width: int) -> None:
        super().__init__()
        self.centre, self.scale, self.heads = centre, scale, heads
        self.query = nn.Linear(len(centre), MEMBERS * heads, bias=False)
        nn.init.zeros_(self.query.weight)  # a mean at first
        self.value = nn.Linear(len(centre), MEMBERS * heads * width)
        bound = (heads * width) ** -0.5
        self.out = nn.Parameter(torch.empty(MEMBERS, heads * width).uniform_(-bound, bound))
        self.shift = nn.Parameter(torch.zeros(MEMBERS))

    def forward(
        self, x: Float[Tensor, "tokens d_model"], row: Int[Tensor, " tokens"], rows: int, noise: float = 0.0
    ) -> Float[Tensor, "rows members"]:
        """Log-odds of harm, of each row that the tokens are of, as each member has it."""
        x = (x - self.centre) / self.scale
        if noise:
            x = x + noise * torch.randn_like(x)
        logit, values = self.query(x), self.value(x).unflatten(-1, (MEMBERS * self.heads, -1))
        # The softmax over each row's own tokens; the peak only keeps the exponentials in range.
        peak = logit.new_full((rows, logit.shape[1]), -torch.inf)
        peak = peak.scatter_reduce(0, row[:, None].expand_as(logit), logit.detach(), "amax")
        weight = (logit - peak[row]).exp()
        total = torch.zeros_like(peak).index_add(0, row, weight)
        sums = values.new_zeros(rows, *values.shape[1:]).index_add(0, row, weight[..., None] * values)
        z = (sums / total[..., None]).unflatten(1, (MEMBERS, self.heads)).flatten(2)
        return (F.gelu(F.dropout(z, DROPOUT, self.training)) * self.out).sum(2) + self.shift

    @torch.no_grad()
    def scores(self, streams: Streams, rows: Sequence[int], batch: int = 128) -> Float[Tensor, " rows"]:
        """Log-odds of harm of some prompts, in the order given."""
        self.eval()
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return torch.cat([self(*streams.packed(part), len(part)).mean(1) for part in parts])

    @torch.no_grad()
    def arrays(self) -> dict[str, np.ndarray]:
        """What an `AttentionSensor` reads by, with centre and scale folded in: it takes the stream as it is."""
        query, value = self.query.weight / self.scale, self.value.weight / self.scale
        # The same for every token, the centre does not matter to a softmax.
        found = {
            "query": query,
            "value": value,
            "value_bias": self.value.bias - value @ self.centre,
            "out": self.out.flatten() / MEMBERS,
        }
        return {name: array.numpy() for name, array in found.items()}

    @property
    def bias(self) -> float:
        """That of the score."""
        return float(self.shift.mean())


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
                x, row = streams.packed([rows[i] for i in drawn])
                wanted = torch.from_numpy(label[drawn]).float()[:, None].expand(-1, MEMBERS)
                loss = F.binary_cross_entropy_with_logits(probe(x, row, len(drawn), NOISE), wanted)
                adam.zero_grad()
                loss.backward()
                adam.step()
                progress.step(figures=f"{loss.item():.2f} nats")
    return probe.eval().requires_grad_(False)
