"""Every rival is made on a tiny model from start to end, travels as a file, and does what it says."""

import pytest
import torch

from demur.errors import PolicyError, SettingsError
from demur.features.effect import Bench
from demur.models.generation import GenerationSettings
from demur.records import CastSensor, FeatureSensor, Gate, Message, Prompt, PromptSet
from demur.rivals.build import CANNED, RIVALS, SAFETY, RivalSettings, Workshop, check_bases, check_names
from demur.steering.generate import generate
from demur.steering.policies import find_policy
from tests import tiny

SETTINGS = RivalSettings(
    layers=(0, 1, 2, 9), doses=(0.2, 0.5), layer_doses=(0.1,), strengths=(0.5,), replies=4, scored=1, tried=2
)


def prompts(name: str) -> PromptSet:
    words = ["bread", "cake", "tea", "soup", "rice", "milk", "salt", "corn"]
    rows = [
        Prompt(id=f"{label}{i}", prompt=f"{verb} {word}", label=label, kind=kind, source=name)
        for label, kind, verb in (("harmful", "harmful", "Poison the"), ("benign", "plain", "Bake the"))
        for i, word in enumerate(words)
    ]
    return PromptSet(name=name, rows=tuple(rows))


@pytest.fixture(scope="module")
def shop() -> Workshop:
    lm = tiny.lm("llama", torch.float32)
    sae = tiny.sae("llama", 1).to(torch.zeros(()))
    named = {"model": lm.name, "model_hash": lm.hash, "saes": {sae.config.site: sae.hash}}
    sensor = FeatureSensor(site="1.resid_post", features=(1, 5), weights=(1.0, 0.5), bias=0.1)
    gate = Gate(sensor=sensor, threshold=0.5)
    ours = tiny.policy().model_copy(update={**named, "name": "gated", "gate": gate})
    paper = tiny.policy(features=(3,), positions="all").model_copy(update={**named, "name": "paper"})
    return Workshop(Bench(lm, sae, batch=8), prompts("train"), prompts("validation"), SETTINGS, ours, paper)


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_made_saved_and_used(name, shop, tmp_path):
    RIVALS[name](shop).save(tmp_path / f"{name}.toml")
    policy = find_policy(str(tmp_path / f"{name}.toml"))
    assert policy.name == name and not policy.is_plain
    talk = [row.conversation for row in shop.validation.rows[:3]]
    if policy.system:  # longer in bytes than the tiny model's context; tests/laws has the law
        assert policy.conversation(talk[0]) == (Message(role="system", content=SAFETY), *talk[0])
        return
    replies = dict(generate(shop.bench.lm, shop.bench.saes, talk, [policy] * 3, GenerationSettings(max_new_tokens=4)))
    assert len(replies) == 3
    if policy.receipt.get("trials"):
        chosen = [t for t in policy.receipt["trials"] if t["option"] == policy.receipt["option"]]
        worth = [t["refused"] - t["benign_refused"] - t["degenerate"] for t in policy.receipt["trials"]]
        assert len(chosen) == 1 and worth[policy.receipt["trials"].index(chosen[0])] == max(worth)


def test_canned_shares_our_gate(shop):
    policy = RIVALS["canned"](shop)
    assert policy.gate == shop.ours.gate and policy.canned == CANNED and not policy.interventions


def test_cast_has_a_condition_before_its_behaviour(shop):
    policy = RIVALS["cast"](shop)
    assert isinstance(policy.gate.sensor, CastSensor)
    assert min(int(i.site[0]) for i in policy.interventions) >= int(policy.gate.sites[0][0])


def test_arms_differ_from_the_paper_in_one_thing(shop):
    act = shop.paper.interventions[0]
    bare = RIVALS["reconstruction"](shop).interventions[0]
    assert bare.edits == () and not bare.keep_error and bare.positions == act.positions
    assert RIVALS["splice"](shop).interventions[0] == act.model_copy(update={"keep_error": False})
    pushed = RIVALS["random-direction"](shop).interventions[0]
    assert pushed.edits == () and pushed.positions == act.positions and pushed.pushes[0].value > 0
    other = RIVALS["unrelated"](shop).interventions[0].edits[0]
    assert other.value == act.edits[0].value and other.feature != act.edits[0].feature


def test_wrong_names_and_bases_are_told(shop):
    with pytest.raises(SettingsError, match="no rival 'casd'"):
        check_names(["casd"])
    with pytest.raises(PolicyError, match="no gate"):
        check_bases(shop.paper, shop.paper)
    with pytest.raises(PolicyError, match="not the paper's"):
        check_bases(shop.ours, shop.ours)
