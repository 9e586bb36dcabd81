"""Pardons: upheld prompts and what is near them are answered; everything else is as it was; known harm stays out."""

import numpy as np
import pytest
import torch

from demur.calibration.pardon import NAME, PREFIX, PardonSettings, discriminants, pardon, pardons, unpardoned
from demur.errors import PolicyError
from demur.records import Level, Message, Policy, Prompt, PromptSet
from demur.steering.generate import decide
from tests import tiny

SETTINGS = PardonSettings(known=80)


def prompts(texts, label, name="set") -> PromptSet:
    return PromptSet(
        name=name, rows=tuple(Prompt(id=f"{name}-{i}", prompt=t, label=label) for i, t in enumerate(texts))
    )


@pytest.fixture(scope="module")
def world():
    """A policy whose gate opens on everything; prompts in several manners, some of them appealed against."""
    draw = np.random.default_rng(3)
    words = ["kettle", "ladder", "garden", "violin", "copper", "window", "saddle", "basket", "turnip", "anchor"]
    sentence = lambda: " ".join(draw.choice(words, size=6))  # noqa: E731
    known = prompts([sentence() for _ in range(80)], "benign", "known")
    harm = prompts([f"{sentence()} now" for _ in range(60)], "harmful", "harm")
    upheld = prompts(["Why is the sky blue?", "1 2 3 4 5 6 7 8 9"], "benign", "appeal")
    return tiny.policy(threshold=-99.0), known, harm, upheld


def opened(policy: Policy, texts) -> list[bool]:
    talks = [(Message(role="user", content=t),) for t in texts]
    return [seen["open"] for seen in decide(tiny.lm(), tiny.saes(), talks, policy)]


def test_what_was_upheld_is_answered_and_the_rest_is_not(world):
    policy, known, harm, upheld = world
    made = pardon(tiny.lm(), tiny.saes(), policy, upheld, known, harm, SETTINGS)
    asked = [r.prompt for r in upheld.rows]
    assert opened(policy, asked) == [True, True]
    assert opened(made, asked) == [False, False]
    assert all(opened(made, [r.prompt for r in known.rows]))
    counts = made.receipt["pardon"]["open"]["harmful"]
    assert counts["before"]["k"] == 60
    # The stated budget, of the very prompts that it was set on.
    assert counts["after"]["k"] >= 59
    assert pardons(made.gate.sensor) == 2


def test_with_too_little_harm_for_the_budget_none_of_it_is_in_reach(world):
    policy, known, harm, _ = world
    few = harm.model_copy(update={"rows": harm.rows[:20]})  # of 199
    near = prompts([f"{harm.rows[0].prompt} please"], "benign", "appeal")
    made = pardon(tiny.lm(), tiny.saes(), policy, near, known, few, SETTINGS)
    assert all(opened(made, [r.prompt for r in few.rows]))


def test_only_harm_that_some_level_refuses_shortens_the_reach(world):
    policy, known, harm, _ = world
    lm, saes = tiny.lm(), tiny.saes()
    scores = [seen["gate"] for seen in decide(lm, saes, [r.conversation for r in harm.rows], policy)]
    middle = float(np.median(scores))
    # What is appealed against is near a harmful prompt at which the gate stays shut.
    shut = harm.rows[int(np.argmin(scores))]
    near = prompts([f"{shut.prompt} please"], "benign", "appeal")

    def reach(levels: dict) -> float:
        gate = policy.gate.model_copy(update={"threshold": middle})
        made = pardon(lm, saes, policy.model_copy(update={"gate": gate, "levels": levels}), near, known, harm, SETTINGS)
        return made.receipt["pardon"]["reach"]

    alone, strict = reach({}), reach({"strict": Level(threshold=min(scores) - 1)})
    off = reach({"off": Level(threshold=np.inf)})
    assert alone == off < strict, "at the strict level the nearest one is refused, and is to stay so"


def test_where_the_gate_opens_on_no_harm_the_reach_is_as_asked_for(world):
    policy, known, harm, upheld = world
    gate = policy.gate.model_copy(update={"threshold": 99.0})
    made = pardon(tiny.lm(), tiny.saes(), policy.model_copy(update={"gate": gate}), upheld, known, harm, SETTINGS)
    assert made.receipt["pardon"]["reach"] == SETTINGS.reach


def test_scores_of_what_is_not_pardoned_are_the_same_so_levels_hold(world):
    policy, known, harm, upheld = world
    made = pardon(tiny.lm(), tiny.saes(), policy, upheld, known, harm, SETTINGS)
    talks = [r.conversation for r in harm.rows]
    before = [s["gate"] for s in decide(tiny.lm(), tiny.saes(), talks, policy)]
    after = [s["gate"] for s in decide(tiny.lm(), tiny.saes(), talks, made)]
    same = [a == pytest.approx(b, abs=1e-9) for a, b in zip(after, before, strict=True)]
    assert sum(same) >= 59
    assert all(a <= b + 1e-9 for a, b in zip(after, before, strict=True))
    assert made.interventions == policy.interventions


def test_a_pardon_is_saved_loaded_renewed_and_taken_back(world, tmp_path):
    policy, known, harm, upheld = world
    made = pardon(tiny.lm(), tiny.saes(), policy, upheld, known, harm, SETTINGS)
    made.save(tmp_path / "gated.toml")
    read = Policy.load(tmp_path / "gated.toml")
    assert read.hash == made.hash != policy.hash
    fewer = pardon(
        tiny.lm(), tiny.saes(), read, upheld.model_copy(update={"rows": upheld.rows[:1]}), known, harm, SETTINGS
    )
    assert pardons(fewer.gate.sensor) == 1
    assert fewer.gate.sensor.name == NAME
    assert list(fewer._vectors.arrays) == [PREFIX + upheld.rows[0].id]
    assert unpardoned(read).hash == policy.hash


def test_a_policys_own_vectors_are_kept(world):
    policy, known, harm, upheld = world
    held = policy.holding({"own": np.ones(32)})
    made = pardon(tiny.lm(), tiny.saes(), held, upheld, known, harm, SETTINGS)
    assert made.vector("own").tolist() == [1.0] * 32
    assert unpardoned(made).hash == held.hash


def test_known_harm_that_is_near_is_held_at_nothing():
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(400, 16, generator=generator).double()
    appeal = 3 * torch.randn(1, 16, generator=generator).double()
    twin = appeal + 0.4 * torch.randn(1, 16, generator=generator).double()
    alone, offset = discriminants(appeal, twin[:0], usual, PardonSettings())
    told, told_offset = discriminants(appeal, twin, usual, PardonSettings())
    near = lambda x, v, b: float(x[0] @ v[0] + b[0])  # noqa: E731
    assert near(appeal, alone, offset) == pytest.approx(1)
    assert near(twin, alone, offset) > 0.8
    assert near(appeal, told, told_offset) == pytest.approx(1)
    assert abs(near(twin, told, told_offset)) < 0.2
    assert abs((usual @ told[0] + told_offset[0]).mean()) < 1e-9


def test_a_policy_without_a_gate_has_nothing_to_keep_shut(world):
    _, known, harm, upheld = world
    with pytest.raises(PolicyError, match="has no gate"):
        pardon(tiny.lm(), tiny.saes(), tiny.policy(), upheld, known, harm, SETTINGS)
