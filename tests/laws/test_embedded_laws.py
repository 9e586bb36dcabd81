"""The laws that only a real model can show, in float32: a shut gate changes no bit, batch layout no clear token."""

import pytest
import torch

from demur.data.prompts import shipped_prompts
from demur.models.chat import encode
from demur.models.generation import GenerationSettings, reply_tokens
from demur.models.load import load
from demur.records import Policy
from demur.steering.generate import decide
from demur.steering.policies import find_policy, load_saes, names
from demur.steering.session import steer

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def world():
    lm = load("embedded")
    policy = find_policy("gated")
    return lm, policy, load_saes(lm, [policy])


def test_every_shipped_policy_fits_the_shipped_model_and_sae(world):
    lm, _, saes = world
    assert {"none", "paper", "gated", "random"} <= set(names())
    for name in names():
        with steer(lm, saes, [find_policy(name)], encode(lm, [shipped_prompts("test").rows[0].conversation])):
            pass


def test_behind_a_shut_gate_logits_and_text_are_the_plain_models_to_the_bit(world):
    lm, policy, saes = world
    talk = [row.conversation for row in shipped_prompts("test").where(label="benign").sample(140).rows]
    shut = [c for c, seen in zip(talk, decide(lm, saes, talk, policy), strict=True) if not seen["open"]][:100]
    assert len(shut) == 100
    shut.sort(key=lambda c: len(c[-1].content))  # less padding; the layout is the same with the policy and without
    for start in (0, 50):
        prompts = encode(lm, shut[start : start + 50])
        how = GenerationSettings(max_new_tokens=12)
        with torch.inference_mode():
            plain = lm.logits(prompts.ids, prompts.mask, prompts.positions, last=1), reply_tokens(lm, prompts, how)
            with steer(lm, saes, [policy] * 50, prompts):
                logits = lm.logits(prompts.ids, prompts.mask, prompts.positions, last=1)
            with steer(lm, saes, [policy] * 50, prompts):
                tokens = reply_tokens(lm, prompts, how)
        assert torch.equal(logits, plain[0])
        assert tokens == plain[1]


def test_a_row_alone_has_the_logits_of_the_row_in_a_mixed_batch(world):
    lm, policy, saes = world
    always = policy.model_copy(update={"gate": None, "name": "always"})
    rows = shipped_prompts("validation").rows[:6]
    policies: list[Policy] = [always, policy, find_policy("none"), always, find_policy("paper"), policy]
    together = last_logits(lm, saes, [r.conversation for r in rows], policies)
    for row, wanted, own in zip(rows, together, policies, strict=True):
        alone = last_logits(lm, saes, [row.conversation], [own])[0]
        torch.testing.assert_close(alone, wanted, atol=1e-3, rtol=0)
        top = wanted.topk(2).values
        if top[0] - top[1] >= 1e-3:
            assert alone.argmax() == wanted.argmax()


@torch.inference_mode()
def last_logits(lm, saes, talk, policies) -> torch.Tensor:
    prompts = encode(lm, talk)
    with steer(lm, saes, policies, prompts):
        return lm.logits(prompts.ids, prompts.mask, prompts.positions, last=1)[:, -1]
