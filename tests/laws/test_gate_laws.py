"""Sensors joined, levels, doses and the gate on the reply: each against a naive loop over rows and tokens."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch

from demur.activations.harvest import read
from demur.errors import PolicyError
from demur.models.chat import Role, encode
from demur.models.generation import GenerationSettings
from demur.records import (
    AttentionSensor,
    CastSensor,
    Continuation,
    Gate,
    JoinedSensor,
    Kind,
    Level,
    Message,
    Policy,
    ProbeSensor,
)
from demur.steering.generate import decide, generate
from demur.steering.policies import find_policy
from demur.steering.session import Session, steer
from demur.steering.states import AttentionState, Seen, state_of
from tests import tiny

TEXTS = ("How are you today?", "Tell me of the sea, and of the sky above it.", "No")
REPLY = [40, 41, 42, 43, 44, 45, 46, 47]
OTHER = tiny.SENSOR.model_copy(update={"name": "other", "features": (2, 3), "weights": (0.7, -0.4), "bias": -0.2})
PROBE = ProbeSensor(site="1.resid_post", vector="v", bias=0.3)
ATTENTION = AttentionSensor(site="1.resid_post", vector="a", bias=-0.1)


def gated(gate: Gate, **act) -> Policy:
    """Two features edited at block 1 behind a gate, with a vector that a probe may read."""
    policy = tiny.policy()
    intervention = policy.interventions[0].model_copy(update=act)
    arrays = {"v": np.random.default_rng(3).normal(size=32) / 8, "basis": np.linalg.qr(np.eye(32, 3))[0].T}
    drawn = np.random.default_rng(4)
    shapes = {"query": (3, 32), "value": (6, 32), "value_bias": (6,), "out": (6,)}
    arrays |= {f"a.{name}": drawn.normal(size=shape) for name, shape in shapes.items()}
    return policy.model_copy(update={"gate": gate, "interventions": (intervention,)}).holding(arrays)


def read_by_a_gate(roles: list[int], last_turn: bool) -> list[int]:
    """Positions of the words of both sides, and of the template's last token; or of those since the last reply."""
    words = [i for i, role in enumerate(roles) if role in (Role.USER, Role.ASSISTANT)]
    if last_turn:
        asked = max(i for i in words if roles[i] == Role.USER)
        words = [i for i in words if Role.ASSISTANT not in roles[i:asked]]
    return sorted({*words, len(roles) - 1})


def sense(
    policy: Policy, sensor, text: str | tuple[Message, ...], last_turn: bool = False, first: int | None = None
) -> float:
    """A sensor's score, from its definition; or that of so many of the tokens it reads."""
    lm = tiny.lm()
    if isinstance(sensor, JoinedSensor):
        scores = [sense(policy, part, text, last_turn, first) for part in sensor.of]
        if sensor.rule == "sum":
            return sum(w * s for w, s in zip(sensor.weights, scores, strict=True)) + sensor.bias
        margins = [s - t for s, t in zip(scores, sensor.thresholds, strict=True)]
        return {"any": max(margins), "all": min(margins), "not": -margins[0]}[sensor.rule]
    one = encode(lm, tiny.said(text) if isinstance(text, str) else [text])
    x = read(lm, [sensor.site], one.ids)[sensor.site][0]
    x = x[read_by_a_gate(one.roles[0].tolist(), last_turn)[:first]]
    if isinstance(sensor, ProbeSensor):
        return float(x.mean(0) @ torch.as_tensor(policy.vector("v")).double()) + sensor.bias
    if isinstance(sensor, AttentionSensor):
        query, value, c, out = (
            torch.as_tensor(policy.vector(f"a.{name}")).double() for name in ("query", "value", "value_bias", "out")
        )
        score = sensor.bias
        for head in range(3):
            share = torch.softmax(x @ query[head], 0)
            for unit in (2 * head, 2 * head + 1):
                score += float(out[unit] * torch.nn.functional.gelu((share * (x @ value[unit] + c[unit])).sum()))
        return score
    f = tiny.saes()[sensor.site].encode(x)[:, list(sensor.features)].amax(0)
    return float(f @ torch.tensor(sensor.weights).double()) + sensor.bias


JOINED = {
    "sum": JoinedSensor(rule="sum", of=(tiny.SENSOR, OTHER, PROBE), weights=(1.0, -0.5, 2.0), bias=0.4),
    "any": JoinedSensor(rule="any", of=(tiny.SENSOR, PROBE), thresholds=(0.2, 0.1)),
    "all": JoinedSensor(rule="all", of=(tiny.SENSOR, OTHER), thresholds=(0.2, -0.1)),
    "not": JoinedSensor(rule="not", of=(OTHER,), thresholds=(0.3,)),
    "attention": JoinedSensor(rule="sum", of=(ATTENTION, tiny.SENSOR), weights=(1.0, 0.5)),
}
JOINED["nested"] = JoinedSensor(rule="all", of=(JOINED["any"], JOINED["not"]), thresholds=(0.0, 0.0))


@pytest.mark.parametrize("rule", JOINED)
def test_joined_sensors_are_what_their_rule_says(rule):
    policy = gated(Gate(sensor=JOINED[rule], threshold=0.0))
    for text, seen in zip(TEXTS, decide(tiny.lm(), tiny.saes(), tiny.said(*TEXTS), policy), strict=True):
        score = sense(policy, JOINED[rule], text)
        assert seen["gate"] == pytest.approx(score, abs=1e-6)
        assert seen["open"] == (score >= 0)


TALKS = tuple(
    tuple(Message(role=r, content=c) for r, c in zip(itertools.cycle(("user", "assistant")), said))
    for said in (
        ("How are you today?",),
        ("Tell me of the sea.", "It is wide and deep.", "And of the sky above it?"),
        ("No", "Why not?", "Tell me of the sea, and of the sky above it.", "It is blue", "How are you today?"),
        ("Tell me of the sea.", "It is wide.", "How deep?", "As deep as"),  # the last reply is begun for the model
    )
)


@pytest.mark.parametrize("rule", JOINED)
def test_either_is_the_higher_score_of_the_whole_and_of_the_last_turn(rule):
    policy = gated(Gate(sensor=JOINED[rule], threshold=0.0, turns="either", kinds=kinds()))
    by_last = []
    for talk, seen in zip(TALKS, decide(tiny.lm(), tiny.saes(), TALKS, policy), strict=True):
        whole, last = (sense(policy, JOINED[rule], talk, last_turn) for last_turn in (False, True))
        assert seen["gate"] == pytest.approx(max(whole, last) if len(talk) > 1 else whole, abs=1e-6)
        assert seen["last_turn"] == (len(talk) > 1 and last > whole)
        first, second = (sense(policy, k.sensor, talk, seen["last_turn"]) for k in kinds())
        assert seen["hazard"] == ("weapons" if first >= second else "profanity")
        by_last.append(seen["last_turn"])
    whole_alone = gated(Gate(sensor=JOINED[rule], threshold=0.0))
    for talk, seen in zip(TALKS, decide(tiny.lm(), tiny.saes(), TALKS, whole_alone), strict=True):
        assert seen["gate"] == pytest.approx(sense(policy, JOINED[rule], talk), abs=1e-6) and not seen["last_turn"]
    if rule in ("sum", "attention"):
        assert any(by_last)  # else nothing would have been told apart


@pytest.mark.parametrize("rule", ["sum", "attention"])
def test_the_last_turn_read_in_pieces_is_the_last_turn_read_at_once(rule):
    lm, policy = tiny.lm(), gated(Gate(sensor=JOINED[rule], threshold=1e9, turns="either"))
    prompts = encode(lm, TALKS)
    sites = ["0.resid_post", "1.resid_post"]
    streams = read(lm, sites, prompts.ids)  # of the padding too: the same in both, which is all that is asked here
    column = torch.arange(prompts.ids.shape[1])
    position = column[None, :] - prompts.first[:, None]
    row = torch.arange(len(TALKS))[:, None].expand_as(position)

    def scores(width: int) -> torch.Tensor:
        session = Session(lm, tiny.saes(), [policy] * len(TALKS), prompts)
        for piece in column.split(width):
            real = position[:, piece] >= 0
            for site in sites:
                session.edit(site, streams[site][:, piece][real], row[:, piece][real], position[:, piece][real])
        assert session.plans[0].gate is not None and session.plans[0].gate.several.tolist() == [False, True, True, True]
        return session.plans[0].gate.scores()

    torch.testing.assert_close(scores(3), scores(len(column)), rtol=0, atol=1e-10)


def test_attention_over_tokens_as_they_come_is_attention_over_all():
    torch.manual_seed(0)
    shapes = {"query": (3, 8), "value": (6, 8), "value_bias": (6,), "out": (6,)}
    arrays = {name: 3 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    x, row = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 4
    order = torch.randperm(40)

    def scores(pieces) -> torch.Tensor:
        state = AttentionState(ATTENTION, arrays, 5, x)  # nothing is read of the fifth row
        for piece in pieces:
            state.update(Seen(x[piece], row[piece], piece, None, torch.zeros(0, dtype=torch.long)))
        return state.scores()

    torch.testing.assert_close(scores(order.split(7)), scores([torch.arange(40)]), rtol=0, atol=1e-10)
    assert scores([order])[4] == ATTENTION.bias


def test_a_joined_sensor_has_a_figure_for_each_part():
    with pytest.raises(ValueError, match="one for each"):
        JoinedSensor(rule="any", of=(tiny.SENSOR, OTHER), thresholds=(0.1,))
    with pytest.raises(ValueError, match="not takes one"):
        JoinedSensor(rule="not", of=(tiny.SENSOR, OTHER), thresholds=(0.1, 0.2))


# --- levels ----------------------------------------------------------------------------------------------------------

LEVELS = {"relaxed": Level(threshold=2.0), "standard": Level(threshold=0.5), "strict": Level(threshold=-9.0, dose=1.5)}


@cache
def kinds() -> tuple[Kind, Kind]:
    """Two kinds of harm, such that one of the texts is most like the second."""
    policy = gated(Gate(sensor=tiny.SENSOR, threshold=0.0))
    ahead = sorted(sense(policy, tiny.SENSOR, t) - sense(policy, OTHER, t) for t in TEXTS)
    second = OTHER.model_copy(update={"bias": OTHER.bias + (ahead[0] + ahead[1]) / 2})
    return Kind(name="weapons", sensor=tiny.SENSOR), Kind(name="profanity", sensor=second)


def levelled() -> Policy:
    policy = gated(Gate(sensor=tiny.SENSOR, threshold=0.5, kinds=kinds()))
    return policy.model_copy(update={"name": "gated", "levels": LEVELS})


def test_a_level_sets_the_threshold_and_the_dose():
    policy = levelled()
    assert policy.at_level("relaxed").gate.threshold == 2.0
    strict = policy.at_level("strict")
    assert strict.gate.threshold == -9.0
    assert [e.value for e in strict.interventions[0].edits] == [1.5 * e.value for e in policy.interventions[0].edits]
    off = policy.at_level("off")
    assert off.gate is None and not off.acts
    assert len({p.hash for p in (policy, strict, off, policy.at_level("relaxed"))}) == 4


def test_a_kind_of_harm_has_a_level_of_its_own():
    policy = levelled().at_level("standard", {"weapons": "strict", "profanity": "off"})
    rows = decide(tiny.lm(), tiny.saes(), tiny.said(*TEXTS), policy)
    assert {r["hazard"] for r in rows} == {"weapons", "profanity"}, "the texts are to show both"
    for text, seen in zip(TEXTS, rows, strict=True):
        scores = {k.name: sense(policy, k.sensor, text) for k in kinds()}
        assert seen["hazard"] == max(scores, key=lambda k: scores[k])
        assert seen["open"] == (seen["hazard"] == "weapons")
        assert seen.get("dose", 1.0) == 1.0 or seen["dose"] == pytest.approx(1.5)


def test_levels_and_kinds_that_are_not_there_name_those_that_are():
    with pytest.raises(PolicyError, match="no level 'hard'; it has off, relaxed, standard, strict"):
        levelled().at_level("hard")
    with pytest.raises(PolicyError, match="did you mean weapons"):
        levelled().at_level("strict", {"weapon": "off"})
    with pytest.raises(PolicyError, match="no gate"):
        tiny.policy().model_copy(update={"levels": LEVELS}).at_level("strict")


def test_a_level_is_asked_for_by_name_and_saved_whole(tmp_path):
    levelled().save(tmp_path / "p.toml")
    assert Policy.load(tmp_path / "p.toml") == levelled()
    found = find_policy(f"{tmp_path / 'p.toml'}:standard,weapons=strict,profanity=off")
    assert found.name == "gated:standard,weapons=strict,profanity=off"
    assert found == levelled().at_level("standard", {"weapons": "strict", "profanity": "off"})
    found.save(tmp_path / "again.toml")
    assert Policy.load(tmp_path / "again.toml").hash == found.hash


def test_a_policy_file_includes_another(tmp_path):
    levelled().save(tmp_path / "base.toml")
    (tmp_path / "mine.toml").write_text('include = "base.toml"\nname = "mine"\nsystem = "Be kind."\n')
    mine = Policy.load(tmp_path / "mine.toml")
    assert mine.gate == levelled().gate and mine.name == "mine" and mine.system == "Be kind."
    assert mine.vector("v") == pytest.approx(levelled().vector("v"))
    levelled().model_copy(update={"receipt": {"gate": "as promised"}}).save(tmp_path / "base.toml")
    (tmp_path / "laxer.toml").write_text(
        'include = "base.toml"\n[gate]\nthreshold = 7.0\n[levels.standard]\nthreshold = 7.0\n'
    )
    laxer = Policy.load(tmp_path / "laxer.toml")
    assert laxer.gate.sensor == levelled().gate.sensor and laxer.gate.threshold == 7.0
    assert laxer.levels == levelled().levels | {
        "standard": levelled().levels["standard"].model_copy(update={"threshold": 7.0})
    }
    assert not laxer.receipt and Policy.load(tmp_path / "mine.toml").receipt  # what was promised was of another gate
    (tmp_path / "other.toml").write_text(
        'include = "base.toml"\n[gate.sensor]\nkind = "probe"\nsite = "1.resid_post"\nvector = "v"\n'
    )
    assert Policy.load(tmp_path / "other.toml").gate.sensor == ProbeSensor(site="1.resid_post", vector="v")
    (tmp_path / "a.toml").write_text('include = "b.toml"\n')
    (tmp_path / "b.toml").write_text('include = "a.toml"\n')
    with pytest.raises(PolicyError, match="includes itself"):
        Policy.load(tmp_path / "a.toml")


# --- doses -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def change(policy: Policy, text: str = TEXTS[1]) -> torch.Tensor:
    """What the policy changes at block 1, over the prompt and a forced reply, `[tokens, d_model]`."""
    return _stream(policy, text) - _stream(None, text)


def _stream(policy: Policy | None, text: str) -> torch.Tensor:
    lm = tiny.lm()
    prompts = encode(lm, tiny.said(text))
    ids = torch.cat([prompts.ids, torch.tensor([REPLY])], dim=1)
    with steer(lm, tiny.saes(), [policy or find_policy("none")], prompts):
        return read(lm, ["1.resid_post"], ids)["1.resid_post"][0]


ALWAYS = Gate(sensor=tiny.SENSOR, threshold=-99.0)


def test_the_dose_rises_with_the_risk():
    full = change(gated(ALWAYS))
    score = sense(gated(ALWAYS), tiny.SENSOR, TEXTS[1])
    soft = ALWAYS.model_copy(update={"threshold": score - 1.0, "soft": 4.0, "floor": 0.2})
    torch.testing.assert_close(change(gated(soft)), (0.2 + 0.8 * 0.25) * full, atol=1e-10, rtol=0)
    shut = ALWAYS.model_copy(update={"threshold": score + 0.1, "soft": 4.0})
    assert torch.equal(change(gated(shut)), torch.zeros_like(full))


def test_the_dose_rises_and_falls_over_the_reply():
    full = change(gated(ALWAYS))
    first = len(full) - len(REPLY) - 1
    shaped = change(gated(ALWAYS, onset=2, hold=4, decay=1))
    for at, (whole, part) in enumerate(zip(full[first:], shaped[first:], strict=True)):
        rise = min(1.0, (at + 1) / 3)
        fall = 1.0 if at < 4 else max(0.0, 1 - (at - 4 + 1) / 2)
        torch.testing.assert_close(part, rise * fall * whole, atol=1e-10, rtol=0)


def test_positions_are_edited_until_the_dose_has_fallen_to_nothing():
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(TEXTS[1]))
    ids = torch.cat([prompts.ids, torch.tensor([REPLY])], dim=1)
    for shape, wanted in (({}, len(REPLY) + 1), ({"hold": 2, "decay": 1}, 3), ({"hold": 0, "decay": 0}, 0)):
        with steer(lm, tiny.saes(), [gated(ALWAYS, **shape)], prompts) as session:
            read(lm, ["1.resid_post"], ids)
        assert int(session.edited.sum()) == wanted


def test_values_scale_with_the_norm_and_are_capped():
    plain = _stream(None, TEXTS[1])
    full, scaled = change(gated(ALWAYS)), change(gated(ALWAYS, norm=2.0))
    f = tiny.saes()["1.resid_post"].encode(plain)[:, [3, 7]]
    first = len(full) - len(REPLY) - 1
    for at in range(first, len(full)):
        value = 4.0 * plain[at].norm() / 2.0
        wanted = (value - f[at]) @ tiny.saes()["1.resid_post"].W_dec[[3, 7]]
        torch.testing.assert_close(scaled[at], wanted, atol=1e-10, rtol=0)
    capped = change(gated(ALWAYS, cap=0.1))
    for at in range(first, len(full)):
        limit = min(1.0, float(0.1 * plain[at].norm() / full[at].norm()))
        torch.testing.assert_close(capped[at], limit * full[at], atol=1e-10, rtol=0)


def test_a_change_is_made_outside_of_a_basis():
    basis = torch.as_tensor(gated(ALWAYS).vector("basis")).double()
    full, outside = change(gated(ALWAYS)), change(gated(ALWAYS, off="basis"))
    torch.testing.assert_close(outside, full - full @ basis.T @ basis, atol=1e-9, rtol=0)
    assert float((outside @ basis.T).abs().max()) < 1e-6 < float((full @ basis.T).abs().max())


# --- the gate on the reply -------------------------------------------------------------------------------------------


def token_scores(text: str, reply: list[int]) -> list[float]:
    """The sensor's score of each token of a forced reply."""
    lm, sae = tiny.lm(), tiny.saes()["0.resid_post"]
    ids = torch.cat([encode(lm, tiny.said(text)).ids, torch.tensor([reply])], dim=1)
    f = sae.encode(read(lm, ["0.resid_post"], ids)["0.resid_post"][0, -len(reply) :])
    weights = torch.tensor(tiny.SENSOR.weights).double()
    return (f[:, list(tiny.SENSOR.features)] @ weights + tiny.SENSOR.bias).tolist()


def naive_late(scores: list[float], how: Continuation) -> tuple[list[float], list[bool]]:
    smooth, live, trace, states = 0.0, False, [], []
    for score in scores:
        smooth += (score - smooth) / how.tau
        live = smooth >= how.closes if live else smooth >= how.opens
        trace.append(smooth)
        states.append(live)
    return trace, states


def late_policy(opens: float, closes: float, **act) -> Policy:
    how = Continuation(sensor=tiny.SENSOR, opens=opens, closes=closes, tau=2.0)
    return gated(Gate(sensor=tiny.SENSOR, threshold=99.0, continuation=how), **act)


def between(values: list[float], share: float) -> float:
    low, high = min(values), max(values)
    return low + share * (high - low)


@torch.inference_mode()
def test_it_opens_and_shuts_with_hysteresis_and_acts_where_it_is_open():
    scores = token_scores(TEXTS[1], REPLY)
    trace, _ = naive_late(scores, Continuation(sensor=tiny.SENSOR, opens=0, closes=0, tau=2.0))
    policy = late_policy(between(trace, 0.6), between(trace, 0.3))
    trace, states = naive_late(scores, policy.gate.continuation)
    assert any(states) and not all(states), "the reply is to show both"
    lm = tiny.lm()
    prompts = encode(lm, tiny.said(TEXTS[1]))
    with steer(lm, tiny.saes(), [policy], prompts) as session:
        lm.model(input_ids=torch.cat([prompts.ids, torch.tensor([REPLY])], dim=1))
    seen = session.report(0, len(REPLY) + 1)
    assert seen["trace"] == pytest.approx(trace, abs=1e-4)
    assert seen["edited"] == sum(states) and seen["open"] and seen["late"] == states.index(True)
    moved = change(policy)[-len(REPLY) :].norm(dim=1) > 0
    assert moved.tolist() == states


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [[1] * 8, [3, 5], [8]])
def test_pieces_with_a_cache_are_one_pass(cuts):
    lm, saes = tiny.lm(), tiny.saes()
    prompts = encode(lm, tiny.said(*TEXTS))
    reply = torch.tensor([REPLY, REPLY[::-1], [50 + i for i in range(8)]])
    policies = [late_policy(-1.0, -1.5, onset=1), tiny.policy(), late_policy(0.2, 0.0)]
    mask = torch.cat([prompts.mask, torch.ones_like(reply)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with steer(lm, saes, policies, prompts) as whole:
        once = lm.model(
            input_ids=torch.cat([prompts.ids, reply], dim=1), attention_mask=mask, position_ids=positions
        ).logits
    width, cache, pieces = prompts.ids.shape[1], None, []
    with steer(lm, saes, policies, prompts) as cut:
        for size in [width, *cuts]:
            start = sum(p.shape[1] for p in pieces)
            ids = torch.cat([prompts.ids, reply], dim=1)[:, start : start + size]
            out = lm.model(
                input_ids=ids,
                attention_mask=mask[:, : start + size],
                position_ids=positions[:, start : start + size],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            pieces.append(out.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], once[real], atol=1e-10, rtol=0)
    assert [whole.report(i, 9)["edited"] for i in range(3)] == [cut.report(i, 9)["edited"] for i in range(3)]


def test_a_reply_that_nothing_is_wrong_with_is_the_plain_one_and_is_known_beforehand():
    lm, saes, talk = tiny.lm(), tiny.saes(), tiny.said(*TEXTS)
    settings = GenerationSettings(max_new_tokens=8)
    plain = dict(generate(lm, saes, talk, [find_policy("none")] * 3, settings))
    tokens = [lm.tokenizer(plain[i].text, add_special_tokens=False)["input_ids"] for i in range(3)]
    for policy in (late_policy(99.0, 99.0), late_policy(-99.0, -99.0)):
        steered = dict(generate(lm, saes, talk, [policy] * 3, settings))
        opens = policy.gate.continuation.opens < 0
        assert all(steered[i].steering["open"] == opens for i in range(3))
        assert opens or all(steered[i].text == plain[i].text for i in range(3))
        foreseen = decide(lm, saes, talk, policy, replies=[t or [40] for t in tokens])
        assert [seen["open"] for seen in foreseen] == [opens] * 3


def test_a_gate_on_the_reply_reads_no_later_than_the_first_edit():
    behind = Continuation(sensor=tiny.SENSOR.model_copy(update={"site": "2.resid_post"}), opens=0, closes=0)
    policy = gated(Gate(sensor=tiny.SENSOR, threshold=0, continuation=behind))
    prompts = encode(tiny.lm(), tiny.said("Hi"))
    with (
        pytest.raises(PolicyError, match="behind its first edit"),
        steer(tiny.lm(), tiny.saes(), [policy], prompts),
    ):
        pass


def test_what_fired_says_on_which_word():
    policy = gated(ALWAYS)
    lm = tiny.lm()
    seen = decide(lm, tiny.saes(), tiny.said(TEXTS[0]), policy)[0]
    one = encode(lm, tiny.said(TEXTS[0]))
    f = tiny.saes()["0.resid_post"].encode(read(lm, ["0.resid_post"], one.ids)["0.resid_post"][0])
    for fired in seen["fired"]:
        assert float(f[fired.position, fired.feature]) == pytest.approx(fired.value, abs=1e-9)
        assert fired.token == lm.tokenizer.decode([int(one.ids[0, fired.position])])


@pytest.mark.parametrize("rule", JOINED)
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_what_the_gate_thought_at_each_word_is_its_score_of_the_words_so_far(rule, chunk):
    policy = gated(Gate(sensor=JOINED[rule], threshold=0.0, turns="either"))
    lm, prompts = tiny.lm(), encode(tiny.lm(), TALKS)
    width = prompts.ids.shape[1]
    with steer(lm, tiny.saes(), [policy] * len(TALKS), prompts, words=True) as session, torch.inference_mode():
        cache = None
        for start in range(0, width, chunk or width):
            end = start + (chunk or width)
            out = lm.model(
                prompts.ids[:, start:end],
                attention_mask=prompts.mask[:, :end],
                position_ids=(prompts.mask.cumsum(1) - 1).clamp_min(0)[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
    of = {sensor.site: sensor.features for sensor in policy.gate.readers if sensor.kind == "features"}
    for row, talk in enumerate(TALKS):
        seen = session.report(row, 1)
        one = encode(lm, [talk])
        places = read_by_a_gate(one.roles[0].tolist(), seen["last_turn"])
        assert [h.token for h in seen["heard"]] == [lm.tokenizer.decode([int(one.ids[0, p])]) for p in places]
        for n, heard in enumerate(seen["heard"], 1):
            score = sense(policy, JOINED[rule], talk, seen["last_turn"], n)
            assert heard.score == pytest.approx(score, abs=0.006)
        assert seen["heard"][-1].score == pytest.approx(seen["gate"], abs=0.006)
        for site in of:
            f = tiny.saes()[site].encode(read(lm, [site], one.ids)[site][0])
            for place, heard in zip(places, seen["heard"], strict=True):
                wanted = {feature for s in policy.gate.readers if s.kind == "features" for feature in s.features}
                active = {
                    str(feature): round(float(f[place, feature]), 2) for feature in wanted if f[place, feature] > 0
                }
                assert heard.fired == pytest.approx(active, abs=0.011)


CAST = CastSensor(site="1.resid_post", vector="v", sign=-1)
POOLED = (
    *(tiny.SENSOR, PROBE),
    *(s.model_copy(update={"pooling": p}) for s in (tiny.SENSOR, PROBE) for p in ("mean", "last")),
)


@pytest.mark.parametrize("sensor", [*POOLED, CAST, ATTENTION], ids=str)
def test_a_running_score_is_the_score_after_each_token(sensor):
    like = torch.zeros((), dtype=torch.float64)
    x = torch.from_numpy(np.random.default_rng(7).normal(size=(9, 32)))
    sae, every, nought = tiny.saes()["0.resid_post"], torch.arange(4), torch.zeros(9, dtype=torch.long)
    policy = gated(Gate(sensor=sensor, threshold=0.0))
    features = every if sensor.kind != "features" else torch.tensor(sensor.features)
    state = state_of(sensor, policy, {sensor.site: features}, 1, like)
    whole = Seen(x, nought, torch.arange(9), sae, features)
    after = []
    for at in range(9):
        state.update(whole.where(torch.arange(9) == at))
        after.append(float(state.scores()[0]))
    assert len(set(after)) > 1
    assert state.running(whole).tolist() == pytest.approx(after, abs=1e-9)


def test_what_the_gate_thought_is_not_kept_unless_asked_for():
    seen = decide(tiny.lm(), tiny.saes(), tiny.said(TEXTS[0]), gated(ALWAYS))[0]
    assert "heard" not in seen
    silent = decide(tiny.lm(), tiny.saes(), tiny.said("", TEXTS[0]), gated(ALWAYS), words=True)
    assert silent[0]["heard"] == () and silent[1]["heard"]


def test_what_the_gate_thought_of_the_prompt_is_kept_beside_a_gate_on_the_reply_at_another_site():
    behind = Continuation(sensor=PROBE, opens=9.0, closes=0.0)
    policy = gated(Gate(sensor=tiny.SENSOR, threshold=-9.0, continuation=behind))
    assert {PROBE.site, tiny.SENSOR.site} == set(policy.gate.sites) and len(policy.gate.sites) == 2
    how = GenerationSettings(max_new_tokens=3)
    ((_, reply),) = generate(tiny.lm(), tiny.saes(), tiny.said(TEXTS[0]), [policy], how, words=True)
    bare = decide(tiny.lm(), tiny.saes(), tiny.said(TEXTS[0]), policy.prompt_only, words=True)[0]
    assert reply.steering["heard"] == bare["heard"] != ()
