"""What reads harm: the attention probe finds what a mean drowns, and kinds of harm are told apart."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from demur.data.chats import as_prompts, shipped_chats
from demur.features import sensing
from demur.features.attention import fit_attention
from demur.features.effect import Bench
from demur.features.reading import Streams, read_prompts, read_streams, with_last_turns
from demur.features.sensing import pooled_features, read_kinds, sense, weigh
from demur.features.sensors import fit, weights_of
from demur.features.settings import FindSettings
from demur.models.guard import Guard
from demur.records import (
    AttentionSensor,
    FeatureSet,
    Gate,
    GuardModel,
    GuardSensor,
    JoinedSensor,
    Message,
    Policy,
    ProbeSensor,
    Prompt,
)
from demur.steering.generate import decide
from demur.steering.states import AttentionState, Seen
from tests import tiny


def planted(seed: int) -> tuple[Streams, list[bool]]:
    """Prompts of 5 to 30 tokens; the harmful have one token far out in a direction whose mean is the same in both."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 30, (600,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    x = torch.randn(int(starts[-1]), 12, generator=generator)
    harmful = [i % 2 == 0 for i in range(600)]
    for i in range(600):
        rows = x[starts[i] : starts[i + 1]]
        rows[:, 3] -= rows[:, 3].mean()
        if harmful[i]:
            rows[:, 3] -= 6 / len(rows)
            rows[-1, 3] += 6
    return Streams(x, starts), harmful


def test_attention_finds_the_token_that_a_mean_drowns():
    streams, harmful = planted(0)
    fitted, fresh = list(range(400)), list(range(400, 600))
    probe = fit_attention(streams, harmful, [""] * 600, fitted, heads=4, width=4)
    area = roc_auc_score([harmful[i] for i in fresh], probe.scores(streams, fresh))
    mean = streams.pooled("mean")
    linear = fit(mean[fitted], [harmful[i] for i in fitted], [""] * 400, 12)
    assert area > 0.95
    assert roc_auc_score([harmful[i] for i in fresh], linear.scores(mean[fresh])) < 0.7


def test_the_saved_arrays_read_a_stream_as_the_probe_did():
    streams, harmful = planted(1)
    probe = fit_attention(streams, harmful, [""] * 600, range(600), heads=4, width=4)
    arrays = {name: torch.as_tensor(array) for name, array in probe.arrays().items()}
    state = AttentionState(AttentionSensor(site="1.resid_post", vector="a", bias=probe.bias), arrays, 600, streams.x)
    row = torch.repeat_interleave(torch.arange(600), streams.starts.diff())
    state.update(Seen(streams.x, row, torch.arange(len(row)), None, torch.zeros(0, dtype=torch.long)))
    torch.testing.assert_close(state.scores(), probe.scores(streams, range(600)), rtol=0, atol=1e-4)


def test_the_seed_decides_the_probe_and_nothing_else_does():
    streams, harmful = planted(2)
    torch.manual_seed(1)
    one = fit_attention(streams, harmful, [""] * 600, range(600), heads=2, width=2)
    torch.manual_seed(2)
    two = fit_attention(streams, harmful, [""] * 600, range(600), heads=2, width=2)
    assert torch.equal(one.query.weight, two.query.weight)


def test_streams_are_what_a_gate_reads():
    lm, sae = tiny.lm(), tiny.sae()
    talk = [tiny.said(text)[0] for text in ("How are you today?", "No", "Tell me of the sea, and of the sky.")]
    streams = read_streams(lm, sae.config.site, talk)
    pools = read_prompts(lm, sae, talk, [], residual=["mean", "last"])
    for how in ("mean", "last"):
        torch.testing.assert_close(streams.pooled(how), pools[f"residual {how}"].float(), rtol=0.02, atol=0.02)


def test_a_chats_last_turn_is_kept_apart_with_it(monkeypatch):
    monkeypatch.setattr(sensing, "FEWEST", 0)
    rows = [
        r for split in ("train", "validation") for r in as_prompts(shipped_chats(split), 1) if len(r.conversation) == 3
    ]
    rows = [r.model_copy(update={"label": "harmful" if i % 2 else "benign"}) for i, r in enumerate(rows[:40])]
    monkeypatch.setattr("demur.features.attention.EPOCHS", 0)
    monkeypatch.setattr("demur.features.attention.FEWEST_STEPS", 1)
    given: dict[str, list] = {}

    def weighed(lm, streams, pooled, rows, apart, *more):
        given.update(ids=[row.id for row in rows], apart=list(apart))
        return {"probe": 1.0, "features": 0.2}, 0.0

    monkeypatch.setattr(sensing, "_weighed", weighed)
    sense(Bench(tiny.lm(), tiny.sae()), rows, ["chats"] * len(rows), FindSettings(sensors=4))
    assert len(given["ids"]) == 2 * len(rows)
    of = list(zip(given["ids"], given["apart"], strict=True))
    assert sorted(of[: len(rows)]) == sorted(of[len(rows) :])
    assert {away for _, away in of} == {True, False}


@pytest.mark.parametrize("sign", [-5, 5])
@pytest.mark.parametrize("system", [False, True])
def test_the_last_of_several_turns_is_read_by_itself_as_a_gate_does(system, sign):
    lm, sae = tiny.lm(), tiny.sae()
    once, later = tiny.said("How are you today?")[0], tiny.said("Hello", "Tell me of the sea, and of the sky.")
    talk = (*later[0], Message(role="assistant", content="Hi!"), *later[1])
    if system:
        talk = (Message(role="system", content="Be brief."), *talk)
    conversations = [once, talk, once]
    vector = sign * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    streams, several = with_last_turns(lm, read_streams(lm, sae.config.site, conversations), conversations)
    assert several == [1] and len(streams) == 4
    mine = streams.pooled("mean") @ vector
    probe = ProbeSensor(site=sae.config.site, vector="v", pooling="mean")
    gate = Gate(sensor=probe, threshold=0.0, turns="either")
    policy = Policy(name="p", model=lm.name, model_hash=lm.hash, gate=gate).holding({"v": vector.numpy()})
    seen = torch.tensor([s["gate"] for s in decide(lm, {}, conversations, policy)])
    wanted = torch.stack([mine[0], torch.maximum(mine[1], mine[3]), mine[2]])
    torch.testing.assert_close(seen, wanted, rtol=0.02, atol=0.1)
    assert abs(float(mine[1] - mine[3])) > 0.2  # so that one would not pass for the other


def test_streams_that_were_kept_are_read_again_if_they_are_of_the_same_prompts(tmp_path, monkeypatch):
    lm, site, kept = tiny.lm(), tiny.sae().config.site, tmp_path / "streams.safetensors"
    talk = tiny.said("How are you today?", "No")
    first = read_streams(lm, site, talk, kept=kept)
    longer = read_streams(lm, site, tiny.said("How are you today?", "No", "Yes"), kept=tmp_path / "other.safetensors")
    assert len(longer) == 3
    with monkeypatch.context() as patch:
        patch.setattr("demur.features.reading.read_in_passes", None)  # nothing may be read
        again = read_streams(lm, site, talk, kept=kept)
    assert torch.equal(again.x, first.x) and torch.equal(again.starts, first.starts)
    for content in (b"\xff" * 64, (tmp_path / "other.safetensors").read_bytes(), kept.read_bytes()[:500]):
        kept.write_bytes(content)
        assert torch.equal(read_streams(lm, site, talk, kept=kept).x, first.x)


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_pooled_features_are_the_full_encodes_pooled(pooling):
    bench = Bench(tiny.lm(), tiny.sae())
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, 3, 4, 9, 20])
    streams = Streams(torch.randn(20, 32, generator=generator), starts)
    f = bench.sae.encode(streams.x.to(bench.sae.W_enc)).float()
    pool = {"max": lambda part: part.amax(0), "mean": lambda part: part.mean(0), "last": lambda part: part[-1]}[pooling]
    wanted = torch.stack([pool(f[a:b]) for a, b in itertools.pairwise(starts)])
    torch.testing.assert_close(pooled_features(bench, streams, pooling), wanted)


def test_both_readings_are_summed_and_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(sensing, "FEWEST", 60)
    rows = [
        Prompt(
            id=f"{word} {i}",
            prompt=f"{word} {i}",
            label=label,
            source="s",
            kind="harmful" if label == "harmful" else "plain",
        )
        for i in range(30)
        for word, label in (("Poison the well", "harmful"), ("Water the rose", "benign"))
    ]
    found = sense(Bench(tiny.lm(), tiny.sae()), rows, ["s"] * 60, FindSettings(sensors=4))
    assert isinstance(found.sensor, JoinedSensor) and len(found.sensor.of) == 2
    assert all(w >= 0 for w in found.sensor.weights)
    monkeypatch.setattr(sensing, "FEWEST", 61)
    bare = sense(Bench(tiny.lm(), tiny.sae()), rows, ["s"] * 60, FindSettings(sensors=4))
    assert bare.sensor is None and [f.id for f in bare.features] == [f.id for f in found.features]
    saved = FeatureSet(
        model="m", model_hash="h", sae="s", sae_hash="h", site="1.resid_post", method="effect", how="",
        features=tuple(found.features), sensor=found.sensor,
    ).holding(found.arrays)  # fmt: skip
    saved.save(tmp_path / "features.json")
    assert FeatureSet.load(tmp_path / "features.json") == saved


@pytest.mark.parametrize("fewest", [60, 61])
def test_a_guard_is_weighed_beside_what_reads_the_stream(monkeypatch, fewest):
    monkeypatch.setattr(sensing, "FEWEST", fewest)
    rows = [
        Prompt(id=f"{word} {i}", prompt=f"{word} {i}", label=label, source="s")
        for i in range(30)
        for word, label in (("Poison the well", "harmful"), ("Water the rose", "benign"))
    ]
    how = GuardModel(model="g", unsafe="yes", safe="no")
    asked: list[str] = []

    def knows(sure: float) -> Guard:
        class Knows(Guard):
            def scores(self, conversations):
                asked.extend(talk[0].content for talk in conversations)
                return torch.tensor([sure if talk[0].content.startswith("Poison") else -sure for talk in conversations])

        return Knows(tiny.lm("qwen2"), how, (), 0, 1, str)

    found = {}
    for sure in (2.0, -2.0):
        monkeypatch.setattr(sensing, "guard_of", lambda _how, _device, sure=sure: knows(sure))
        found[sure] = sense(Bench(tiny.lm(), tiny.sae()), rows, ["s"] * 60, FindSettings(sensors=4, guard=how))
    *stream, guard = found[2.0].sensor.of
    assert [r.kind for r in stream] == (["attention", "features"] if fewest == 60 else ["features"])
    assert guard == GuardSensor(model="g", unsafe="yes", safe="no", model_hash=tiny.lm("qwen2").hash)
    assert all(w > 0 for w in found[2.0].sensor.weights)
    wrong = found[-2.0].sensor
    assert wrong is None if fewest == 61 else [r.kind for r in wrong.of] == ["attention", "features"]
    assert 0 < len(set(asked)) < 30, "it is asked of the prompts that are kept apart to weigh by"


def test_weights_are_a_logistic_models_without_those_that_would_be_below_nothing():
    draw = np.random.default_rng(0)
    y = draw.random(400) < 0.4
    told = {
        "probe": torch.tensor(2.0 * y + draw.normal(size=400)),
        "features": torch.tensor(0.1 * y + draw.normal(size=400)),
        "guard": torch.tensor(-3.0 * y + draw.normal(size=400)),
    }
    weights, bias = weigh(told, y.tolist(), [""] * 400)
    assert weights["guard"] == 0
    x = np.stack([told["probe"].numpy(), told["features"].numpy()], axis=1)
    model = LogisticRegression(C=1.0).fit(x, y, weights_of(y, [""] * 400))
    assert weights["probe"] == pytest.approx(float(model.coef_[0, 0]))
    # The features keep their share, and the mean of the sum stays where it was.
    share = sensing.LEAST * weights["probe"] * x[:, 0].std() / x[:, 1].std()
    assert weights["features"] == pytest.approx(max(share, float(model.coef_[0, 1])))
    mean = weights["probe"] * x[:, 0].mean() + weights["features"] * x[:, 1].mean() + bias
    assert mean == pytest.approx(float(model.coef_[0] @ x.mean(0) + model.intercept_[0]))
    assert weigh({"probe": -told["probe"], "features": -told["probe"]}, y.tolist(), [""] * 400)[0]["probe"] > 0


def test_a_kind_of_harm_is_read_by_the_features_that_tell_it_from_the_others():
    generator = torch.Generator().manual_seed(0)
    categories = ["fraud", "drugs", "privacy"] * 40 + ["theft"] * 3 + [None] * 40
    pooled = torch.rand(len(categories), 30, generator=generator)
    for i, category in enumerate(categories):
        for place, name in enumerate(("fraud", "drugs", "privacy")):
            pooled[i, place] += 3.0 * (category == name)
    rows = [
        Prompt(id=str(i), prompt=f"no. {i}", label="harmful" if c else "benign", category=c, source="demur")
        for i, c in enumerate(categories)
    ]
    kinds = read_kinds("1.resid_post", pooled, rows, "max")
    assert [k.name for k in kinds] == ["drugs", "fraud", "privacy"], "theft has too few prompts to learn from"
    scores = torch.stack(
        [pooled[:120, list(k.sensor.features)] @ torch.tensor(k.sensor.weights) + k.sensor.bias for k in kinds], dim=1
    )
    assert [kinds[i].name for i in scores.argmax(1).tolist()] == categories[:120]
    assert read_kinds("1.resid_post", pooled[120:], rows[120:], "max") == ()
    two = read_kinds(
        "1.resid_post",
        pooled[[i for i in range(120) if i % 3 != 1]],
        [rows[i] for i in range(120) if i % 3 != 1],
        "max",
    )
    assert [k.name for k in two] == ["fraud", "privacy"]
