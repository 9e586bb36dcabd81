"""The planted model behind a gate of one feature that reads what it was planted to react to, with an SAE made by hand."""

from collections.abc import Iterator, Sequence

import torch

from demur.records import Edit, FeatureSensor, Gate, Intervention, Policy, Transcript, Verdict
from demur.sae.sae import SAE, SAEConfig
from tests.planted.test_planted_refusal import REFUSAL, planted

GATE, ACT = "0.resid_post", "1.resid_post"


class Letter:
    """The planted model refuses in one letter and complies in another; anything else is broken."""

    name, keeps, trained_on = "letter", False, frozenset()

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        for t in transcripts:
            outcome = {"N": "refused", "Y": "complied"}.get(t.reply[:1], "degenerate")
            yield Verdict(id=t.id, policy=t.policy, set=t.set, judge=self.name, outcome=outcome)  # type: ignore[arg-type]


def world(threshold: float = 0.45, value: float = 4.0):
    """The model, SAEs whose features are the axes of its stream, and a policy that refuses where the gate opens."""
    lm = planted()
    axes = torch.eye(lm.d_model)

    def sae(site: str) -> SAE:
        config = SAEConfig(d_model=64, d_sae=64, k=64, site=site, model=lm.name, model_hash=lm.hash)
        return SAE(config, axes.clone(), torch.zeros(64), axes.clone(), torch.zeros(64))

    sensor = FeatureSensor(site=GATE, features=(REFUSAL,), weights=(1.0,), pooling="last")
    gate = Gate(sensor=sensor, threshold=threshold)
    act = Intervention(site=ACT, edits=(Edit(feature=REFUSAL, operation="clamp", value=value),))
    policy = Policy(name="gated", model_hash=lm.hash, gate=gate, interventions=(act,))
    return lm, {GATE: sae(GATE), ACT: sae(ACT)}, policy
