"""How good an SAE is, on held-out text: variance unexplained, sparsity, dead features, and what the model loses."""

import torch
from torch.nn import functional as F

from demur.activations.stream import SINK_RATIO, read_rows
from demur.data.corpus import Sequences
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.records import Record
from demur.sae.sae import SAE

ROWS = 8
"""Sequences at a time; the head's logits are long."""


class Quality(Record):
    """Figures of one SAE on held-out text."""

    tokens: int
    fvu: float
    """Share of the activations' variance that the reconstruction leaves unexplained."""
    l0: float
    """Active features per token."""
    dead: float
    """Share of the features not active once in these tokens."""
    loss_plain: float
    """Mean next-token loss of the model, in nats."""
    loss_spliced: float
    """The same with the reconstruction in place of the activations (the first token's kept)."""
    loss_zeroed: float
    """The same with zeros in their place."""
    loss_recovered: float
    """(zeroed − spliced) / (zeroed − plain)."""


@torch.inference_mode()
def measure(lm: LanguageModel, sae: SAE, text: Sequences, batch: int = ROWS) -> Quality:
    """Quality on every token of the text but the first of each sequence, whose activation is an attention sink.

    Raises:
        SAEError: the SAE is for another width.
    """
    rows = sorted((text[i] for i in range(len(text))), key=len)
    groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    active = torch.zeros(sae.config.d_sae, dtype=torch.long, device=lm.device)
    error = squares = torch.zeros((), device=lm.device)
    total = torch.zeros(sae.config.d_model, device=lm.device)
    tokens = fired = 0
    losses = torch.zeros(3)
    with bar("measuring the SAE", len(groups)) as progress:
        for group in groups:
            x = read_rows(lm, [sae.config.site], group)[:, 0]
            x = x[x.norm(dim=1) <= SINK_RATIO * x.norm(dim=1).median()]
            values, indices = sae.encode_sparse(x)
            error = error + (x - sae.decode_sparse(values, indices)).pow(2).sum()
            squares, total, tokens = squares + x.pow(2).sum(), total + x.sum(0), tokens + len(x)
            fired += int((values > 0).sum())
            active += torch.bincount(indices[values > 0], minlength=sae.config.d_sae)
            losses += torch.tensor([_loss(lm, sae, group, how) for how in ("plain", "spliced", "zeroed")])
            progress.step()
    plain, spliced, zeroed = (losses / (text.lengths().sum() - len(text))).tolist()
    return Quality(
        tokens=tokens,
        fvu=float(error / (squares - total.pow(2).sum() / tokens)),
        l0=fired / tokens,
        dead=float((active == 0).float().mean()),
        loss_plain=plain,
        loss_spliced=spliced,
        loss_zeroed=zeroed,
        loss_recovered=(zeroed - spliced) / (zeroed - plain),
    )


def _loss(lm: LanguageModel, sae: SAE, rows: list, how: str) -> float:
    # Summed next-token loss of a group of sequences, padded on the right.
    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype("int64"))

    def splice(hidden: torch.Tensor) -> torch.Tensor | None:
        if how == "plain":
            return None
        flat = hidden[:, 1:].reshape(-1, hidden.shape[-1]).to(sae.W_enc)
        new = sae.decode_sparse(*sae.encode_sparse(flat)) if how == "spliced" else torch.zeros_like(flat)
        return torch.cat([hidden[:, :1], new.view_as(hidden[:, 1:]).to(hidden)], dim=1)

    with at_blocks({lm.block(sae.config.site): splice}):
        logits = lm.logits(ids.clamp_min(0).to(lm.device))
    targets = ids[:, 1:].reshape(-1).to(logits.device)
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum"))
