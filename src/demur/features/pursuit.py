"""A displacement of the stream as a sum of a few features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def pursue(
    direction: Float[Tensor, " d_model"], W_dec: Float[Tensor, "d_sae d_model"], among: Sequence[int], count: int
) -> dict[int, float]:
    """At most `count` of the features `among`, and how much of each (above 0) comes nearest to `direction`; heaviest first.

    Orthogonal matching pursuit with amounts that are not negative (Bruckstein, Elad and Zibulevsky, 2008): the feature
    most along what is still missing joins, and all amounts are fitted anew by least squares (Lawson and Hanson, 1974).
    """
    from scipy.optimize import nnls

    rows = W_dec[list(among)].double().cpu()
    wanted = direction.double().cpu()
    chosen: list[int] = []
    amounts = torch.zeros(0, dtype=torch.double)
    while len(chosen) < min(count, len(rows)):
        along = rows @ (wanted - amounts @ rows[chosen])
        along[chosen] = -torch.inf
        if along.max() <= 0:
            break
        chosen.append(int(along.argmax()))
        amounts = torch.as_tensor(nnls(rows[chosen].T.numpy(), wanted.numpy())[0])
    found = [(among[i], x) for i, x in zip(chosen, amounts.tolist(), strict=True) if x > 0]
    return dict(sorted(found, key=lambda pair: -pair[1]))
