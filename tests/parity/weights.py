"""Random SAEs and streams for comparing with other libraries: uneven norms, biases that matter, streams off centre."""

import torch
from torch import Tensor

from demur.sae.sae import SAE, SAEConfig

D_MODEL, D_SAE, K = 48, 200, 12


def draw(seed: int = 0, norms: tuple[float, float] = (0.4, 2.0)) -> dict[str, Tensor]:
    """Weights with decoder rows of norms spread evenly over a range, in a random order."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=g), dim=1)
    lengths = torch.linspace(*norms, D_SAE)[torch.randperm(D_SAE, generator=g)]
    return {
        "W_enc": torch.randn(D_MODEL, D_SAE, generator=g) / D_MODEL**0.5,
        "b_enc": torch.randn(D_SAE, generator=g) / 4,
        "W_dec": rows * lengths[:, None],
        "b_dec": torch.randn(D_MODEL, generator=g),
        "threshold": torch.rand(D_SAE, generator=g),
    }


def stream(seed: int = 7, tokens: int = 300) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(tokens, D_MODEL, generator=g) + torch.randn(D_MODEL, generator=g)


def ours(rule: str, dtype: str = "float32") -> SAE:
    """One of our SAEs, of any rule: decoder rows of norm 1, as saved in `dtype`."""
    w = draw(3, (1, 1))
    config = SAEConfig(
        d_model=D_MODEL, d_sae=D_SAE, k=K if rule in ("topk", "batchtopk") else None, rule=rule, site="5.resid_post",
        model="tiny", model_hash="0123456789ab", dtype=dtype,
    )  # fmt: skip
    held = {name: w[name].to(getattr(torch, dtype)).float() for name in config.shapes}
    return SAE(config, **held)


def same(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value, and active in the same places."""
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))
    assert torch.equal(ours != 0, theirs != 0)
    assert float((theirs != 0).float().mean()) > 0
