"""Fine-tuning an SAE through the model: what its reconstruction does to the model's predictions, not only to its sum of
squares.

Karvonen, "Revisiting end-to-end sparse autoencoder training: a short finetune is all you need" (arXiv 2503.17272): after
training, a little text with `KL(plain ‖ spliced)` beside the reconstruction loss, the two weighed equally at every step.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from demur.activations.stream import SINK_RATIO, padded
from demur.data.corpus import Sequences, batches
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.progress import bar
from demur.sae.sae import SAE
from demur.sae.settings import SAESettings
from demur.sae.trainer import onto_the_sphere

TOKENS_PER_STEP = 1024
"""The head's logits are long."""
SLOWER = 10
"""How much slower it learns than in training."""


def finetune(lm: LanguageModel, sae: SAE, text: Sequences, settings: SAESettings) -> SAE:
    """A new SAE, fine-tuned on about `settings.finetune_tokens` tokens of the text; thresholds stay as they are."""
    w = {name: weight.clone().requires_grad_(name != "threshold") for name, weight in sae.weights.items()}
    tuned = SAE(sae.config, **w)
    groups = batches(text.lengths(), TOKENS_PER_STEP, settings.seed + 1)[
        : math.ceil(settings.finetune_tokens / TOKENS_PER_STEP)
    ]
    rate = settings.learning_rate() / SLOWER
    adam = torch.optim.Adam(
        [{"params": [w["W_enc"], w["W_dec"]], "as_wide": False}, {"params": [w["b_enc"], w["b_dec"]], "as_wide": True}]
    )
    with bar("fine-tuning through the model", len(groups)) as progress:
        for step, group in enumerate(groups):
            kl, fvu, width = losses(lm, tuned, [text[i] for i in group])
            adam.zero_grad()
            (fvu + kl * (fvu / kl.clamp_min(1e-12)).detach()).backward()
            for part in adam.param_groups:
                # Biases are in the model's units, rows of norm 1 are not.
                part["lr"] = rate * (width if part["as_wide"] else 1.0) * (1 - step / len(groups))
            adam.step()
            with torch.no_grad():
                onto_the_sphere(w["W_dec"])
            progress.step(figures=f"KL {kl.item():.4f}  FVU {fvu.item():.3f}")
    dtype = getattr(torch, sae.config.dtype)
    return SAE(sae.config, **{name: weight.detach().to(dtype).to(weight.dtype) for name, weight in w.items()})


def losses(lm: LanguageModel, sae: SAE, rows: list[np.ndarray]) -> tuple[Float[Tensor, ""], Float[Tensor, ""], float]:
    """`KL(plain ‖ spliced)` per token, the share of variance unexplained, and the activations' root mean square.

    The activation of each row's first token, an attention sink, is left as it is; other sinks count for the KL alone, as
    in `quality`.
    """
    ids, real = (t.to(lm.device) for t in padded(rows))
    parts: list[Tensor] = []

    def splice(hidden: Tensor) -> Tensor:
        x = hidden[real].to(sae.W_enc)
        found = sae.decode_sparse(*sae.encode_sparse(x))
        parts.extend((x, found))
        return hidden.masked_scatter(real[:, :, None], found.to(hidden))

    with torch.no_grad():
        plain = lm.logits(ids)[real].float().log_softmax(dim=-1)
    with at_blocks({lm.block(sae.config.site): splice}):
        spliced = lm.logits(ids)[real].float().log_softmax(dim=-1)
    norms = parts[0].norm(dim=1)
    x, found = (part[norms <= SINK_RATIO * norms.median()] for part in parts)
    fvu = (x - found).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    return F.kl_div(spliced, plain, log_target=True, reduction="batchmean"), fvu, float(x.pow(2).mean().sqrt())
