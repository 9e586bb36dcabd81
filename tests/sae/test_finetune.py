"""Fine-tuning through the model: the model's predictions are kept better, on other text too."""

import pytest
import torch

from demur.sae.finetune import finetune, losses
from demur.sae.train import train
from tests.sae.test_training import SETTINGS, lm, text


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_a_short_finetune_brings_the_models_predictions_back(rule, tmp_path):
    settings = SETTINGS.model_copy(update={"rule": rule, "finetune_tokens": 60_000, "checkpoint_every": 1e9})
    rows = text(1600)
    learn, other = rows.split(1550)
    (sae,) = train(lm(), learn, settings, tmp_path)
    tuned = finetune(lm(), sae, learn, settings)
    with torch.no_grad():
        before, after = (losses(lm(), s, [other[i] for i in range(len(other))]) for s in (sae, tuned))
    assert after[0] < 0.97 * before[0]
    assert after[1] < 1.02 * before[1]
    torch.testing.assert_close(tuned.W_dec.norm(dim=1), torch.ones(48))
    if sae.threshold is not None:
        assert torch.equal(tuned.threshold, sae.threshold)
    assert tuned.hash != sae.hash
