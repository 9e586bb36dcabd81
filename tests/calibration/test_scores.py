"""Scores are those of the code that steers, read once for each sensor, prompt, model and precision."""

import json

import pytest
import torch

from demur.calibration import scores as reading
from demur.calibration.calibrate import base_policy
from demur.calibration.scores import SCORES, read_scores
from demur.errors import FileError, PolicyError
from demur.features.effect import Bench
from demur.models.load import ModelSettings
from demur.records import FeatureSet
from demur.steering.generate import decide
from tests import tiny
from tests.calibration import grounds


@pytest.mark.parametrize("features", [grounds.features(), grounds.joined()], ids=["one sensor", "joined, two sites"])
def test_scores_are_what_a_gate_would_see(features, tmp_path):
    bench, rows = grounds.bench(), grounds.prompts(4).rows
    base = base_policy(bench, features)
    found = read_scores(bench.lm, bench.saes, base, rows, tmp_path)
    seen = decide(bench.lm, bench.saes, [row.conversation for row in rows], base)
    for score, one in zip(found, seen, strict=True):
        assert score.score == pytest.approx(one["gate"], abs=1e-9)
        assert score.kind == one["hazard"]
    if features.kinds:
        assert {s.kind for s in found} <= {"weapons", "theft"}


def test_a_sensor_of_features_alone_is_their_weighted_sum():
    bench, row = grounds.bench(), grounds.prompts(1).rows[0]
    sensor = grounds.features().reading()
    assert (sensor.features, sensor.weights, sensor.bias, sensor.site) == ((5, 9), (1.0, -0.5), 0.1, "1.resid_post")
    from demur.features.reading import read_prompts

    pooled = read_prompts(bench.lm, bench.sae, [row.conversation], ["max"])["max"][0].double()
    found = read_scores(bench.lm, bench.saes, base_policy(bench, grounds.features()), [row])[0]
    assert found.score == pytest.approx(float(pooled[5] - 0.5 * pooled[9] + 0.1), abs=1e-5)


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    bench, rows = grounds.bench(), grounds.prompts(4).rows
    base = base_policy(bench, grounds.features())
    asked = []
    monkeypatch.setattr(reading, "decide", lambda *a, **k: asked.append(len(a[2])) or decide(*a, **k))
    first = read_scores(bench.lm, bench.saes, base, rows[:5], tmp_path)
    assert read_scores(bench.lm, bench.saes, base, rows[:5], tmp_path) == first
    assert read_scores(bench.lm, bench.saes, base, rows, tmp_path)[:5] == first
    assert asked == [5, len(rows) - 5]
    read_scores(bench.lm, bench.saes, base_policy(bench, grounds.joined()), rows[:5], tmp_path)
    assert asked[2:] == [5], "another sensor is another score"
    with (tmp_path / SCORES).open("a") as file:
        file.write('{"sensor": "cut sho')
    assert read_scores(bench.lm, bench.saes, base, rows, tmp_path)[:5] == first
    assert all(json.loads(line) for line in (tmp_path / SCORES).read_text().splitlines())


def test_features_with_a_sensor_and_vectors_are_saved_whole(tmp_path):
    made = grounds.joined()
    made.save(tmp_path / "features.json")
    found = FeatureSet.load(tmp_path / "features.json")
    assert found == made
    assert found.read_at == ("1.resid_post", "0.resid_post")
    assert base_policy(grounds.bench(), found).hash == base_policy(grounds.bench(), made).hash
    (tmp_path / "features.safetensors").write_bytes(made.holding({"v": made.arrays["v"] * 2})._vectors.data)
    with pytest.raises(FileError, match="is not the file that"):
        FeatureSet.load(tmp_path / "features.json")


def test_a_file_of_before_loads(tmp_path):
    new = {"sensor", "kinds", "continuation", "saes", "vectors"}
    (tmp_path / "old.json").write_text(grounds.features().model_dump_json(exclude=new))
    assert FeatureSet.load(tmp_path / "old.json") == grounds.features()


def test_the_saes_are_told_apart_by_their_hashes(tmp_path):
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    for layer in (0, 1):
        tiny.sae("llama", layer).to(torch.zeros(())).save(tmp_path / f"sae-{layer}")
    from demur.sae.sae import SAE

    saes = [SAE.load(tmp_path / f"sae-{layer}") for layer in (0, 1)]
    found = grounds.joined().model_copy(update={"sae_hash": saes[1].hash, "saes": {"0.resid_post": saes[0].hash}})
    model = ModelSettings(model=str(tmp_path / "model"))
    bench = Bench.of(found, [tmp_path / "sae-0", tmp_path / "sae-1"], model)
    assert bench.sae.hash == saes[1].hash
    assert {site: sae.hash for site, sae in bench.saes.items()} == {s.config.site: s.hash for s in saes}
    with pytest.raises(PolicyError, match=r"reads features at 0.resid_post of the SAE .* give that SAE"):
        Bench.of(found, [tmp_path / "sae-1"], model)
    with pytest.raises(PolicyError, match="give it with --sae"):
        Bench.of(found, [tmp_path / "sae-0"], model)
