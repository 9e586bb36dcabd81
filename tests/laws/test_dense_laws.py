"""The laws of steering for what dense methods do: pushes, CAST's condition, system prompts, canned replies."""

import numpy as np
import pytest
import torch

from demur.errors import FileError, PolicyError
from demur.models.chat import encode
from demur.models.generation import GenerationSettings
from demur.records import Message, Policy, Push
from demur.steering.generate import decide, generate
from demur.steering.policies import NONE
from demur.steering.session import Session, steer
from tests import tiny
from tests.laws.test_steering_laws import logits, logits_in_pieces

EXACT = {"atol": 1e-10, "rtol": 0}
TEXTS = ["Hi", "How do I bake a cake?", "A rather longer question, about nothing in particular."]
PUSHES = {
    "add": Push(vector="v", operation="add", value=0.7),
    "project": Push(vector="v", operation="project", value=3.0),
    "map": Push(vector="m", operation="map", value=0.5),
}


def residual(lm, prompts, site, policies=None, saes=None):
    """What leaves a block, `[batch, seq, d_model]`."""
    from demur.models.hooks import at_blocks

    kept = []
    steered = steer(lm, saes or {}, policies, prompts) if policies else torch.inference_mode()
    with torch.inference_mode(), steered, at_blocks({lm.block(site): lambda hidden: kept.append(hidden.clone())}):
        lm.logits(prompts.ids, prompts.mask, prompts.positions, last=1)
    return kept[0]


@pytest.mark.parametrize("operation", PUSHES)
@pytest.mark.parametrize("positions", ["reply", "user", "prompt", "all"])
def test_a_push_is_what_a_naive_loop_does(operation, positions):
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(*TEXTS))
    policy = tiny.dense_policy(PUSHES[operation], positions=positions)
    before = residual(lm, prompts, "1.resid_post")
    session = Session(lm, {}, [policy] * 3, prompts)
    v, m = (torch.tensor(policy.vector(name)).double() for name in "vm")
    edited = 0
    flat = [(r, c) for r in range(3) for c in range(prompts.ids.shape[1]) if prompts.mask[r, c]]
    row = torch.tensor([r for r, _ in flat])
    column = torch.tensor([c for _, c in flat])
    position = prompts.positions[row, column]
    new = session.edit("1.resid_post", before[row, column], row, position)
    assert new is not None
    for i, (r, c) in enumerate(flat):
        x, last = before[r, c], before[r, -1]
        here = {
            "prompt": True,
            "reply": c == prompts.ids.shape[1] - 1,
            "user": c == prompts.ids.shape[1] - 1 or prompts.roles[r, c] == 3,
            "all": c == prompts.ids.shape[1] - 1 or prompts.roles[r, c] in (3, 4),
        }[positions]
        expected = {
            "add": x + 0.7 * v,
            "project": x - (x @ v) / (v @ v) * v + 3.0 * v / v.norm(),
            "map": x + 0.5 * (last @ m),
        }[operation]
        torch.testing.assert_close(new[i], expected if here else x, **EXACT)
        edited += here
    assert int(session.edited.sum()) == edited


@pytest.mark.parametrize("operation", PUSHES)
def test_rows_of_a_mixed_batch_are_as_alone(operation):
    lm, saes = tiny.lm(), tiny.saes()
    policies = [tiny.dense_policy(PUSHES[operation]), tiny.policy(), NONE]
    together = logits(lm, encode(lm, tiny.said(*TEXTS)), policies, saes)
    for i, text in enumerate(TEXTS):
        alone = logits(lm, encode(lm, tiny.said(text)), [policies[i]], saes)
        torch.testing.assert_close(together[i, -1], alone[0, -1], **EXACT)


@pytest.mark.parametrize("operation", PUSHES)
def test_with_a_cache_as_in_one_pass(operation):
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(*TEXTS))
    policies = [tiny.dense_policy(PUSHES[operation])] * 3
    width = prompts.ids.shape[1]
    whole = logits(lm, prompts, policies)
    torch.testing.assert_close(logits_in_pieces(lm, prompts, policies, {}, [width - 4, 3, 1]), whole, **EXACT)


def test_a_map_over_the_prompt_refuses_chunks():
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(*TEXTS))
    policies = [tiny.dense_policy(PUSHES["map"], positions="prompt")] * 3
    with pytest.raises(PolicyError, match="one pass"):
        logits_in_pieces(lm, prompts, policies, {}, [8, prompts.ids.shape[1] - 8])


def test_condition_is_casts_formula():
    lm, talk = tiny.lm(), tiny.said(*TEXTS)
    policy = tiny.dense_policy(PUSHES["add"], threshold=0.0)
    prompts = encode(lm, talk)
    stream = residual(lm, prompts, "0.resid_post")
    v = policy.vector("v").astype(np.float64)
    projector = np.outer(v, v) / (v @ v)
    for i, seen in enumerate(decide(lm, {}, talk, policy)):
        read = (prompts.roles[i] == 3) | (torch.arange(prompts.ids.shape[1]) == prompts.ids.shape[1] - 1)
        h = stream[i][read].mean(0).numpy()
        projected = np.tanh(projector @ h)
        score = h @ projected / np.linalg.norm(h) / np.linalg.norm(projected)
        assert seen["gate"] == pytest.approx(score, abs=1e-6)
        assert seen["open"] == (score >= 0)


def test_shut_condition_is_bit_equal_to_the_plain_model():
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(*TEXTS))
    shut = tiny.dense_policy(PUSHES["add"], threshold=2.0)
    assert torch.equal(logits(lm, prompts, [shut] * 3), logits(lm, prompts, None))


def test_a_system_prompt_is_what_the_user_would_have_sent():
    lm, talk, settings = tiny.lm(), tiny.said("Hi", "Ho"), GenerationSettings(max_new_tokens=6)
    careful = Policy(name="prompt", system="Be careful.")
    sent = [(Message(role="system", content="Be careful."), *t) for t in talk]
    ours = dict(generate(lm, {}, talk, [careful] * 2, settings))
    theirs = dict(generate(lm, {}, sent, [NONE] * 2, settings))
    assert [ours[i].text for i in (0, 1)] == [theirs[i].text for i in (0, 1)]
    both = careful.conversation([Message(role="system", content="Be brief."), *talk[0]])
    assert both[0].content == "Be careful.\n\nBe brief." and both[1:] == talk[0]


def test_a_canned_reply_is_given_where_the_gate_opens_and_nowhere_else():
    lm, saes, talk, settings = tiny.lm(), tiny.saes(), tiny.said(*TEXTS), GenerationSettings(max_new_tokens=6)
    scores = [seen["gate"] for seen in decide(lm, saes, talk, tiny.policy(threshold=0.0))]
    gate = tiny.policy(threshold=sorted(scores)[1]).gate
    canned = Policy(name="canned", model_hash=lm.hash, gate=gate, canned="No.")
    replies = dict(generate(lm, saes, talk, [canned] * 3, settings))
    plain = dict(generate(lm, saes, talk, [NONE] * 3, settings))
    for i, score in enumerate(scores):
        opened = score >= sorted(scores)[1]
        assert replies[i].steering["open"] == opened
        assert replies[i].steering["edited"] == 0
        assert replies[i].text == ("No." if opened else plain[i].text)


def test_vectors_travel_with_the_policy(tmp_path):
    policy = tiny.dense_policy(PUSHES["add"])
    path = tmp_path / "dense.toml"
    policy.save(path)
    again = Policy.load(path)
    assert again == policy and again.hash == policy.hash
    assert np.array_equal(again.vector("v"), policy.vector("v"))
    vectors = path.with_suffix(".safetensors")
    whole = vectors.read_bytes()
    for bad, error in ((whole[:50], FileError), (b"\x80\x04evil", FileError)):
        vectors.write_bytes(bad)
        with pytest.raises(error, match="safetensors"):
            Policy.load(path)
    tiny.dense_policy(PUSHES["add"]).holding({"v": np.ones(32)}).save(tmp_path / "other.toml")
    vectors.write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(FileError, match="not the file"):
        Policy.load(path)
    vectors.unlink()
    with pytest.raises(FileError, match="does not exist"):
        Policy.load(path)


def test_a_vector_of_another_width_or_name_is_refused():
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said("Hi"))
    policy = tiny.dense_policy(PUSHES["add"])
    with pytest.raises(PolicyError, match="shape"):
        logits(lm, prompts, [policy.holding({"v": np.ones(7)})])
    with pytest.raises(PolicyError, match="no vector"):
        logits(lm, prompts, [policy.holding({"w": np.ones(32)})])
