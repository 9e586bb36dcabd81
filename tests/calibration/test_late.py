"""The gate on the reply: arithmetic on cached scores is what the gate does, and it keeps to its budget."""

import pytest

from demur.calibration.calibrate import base_policy
from demur.calibration.late import REPLIES, set_late, smoothed
from demur.calibration.settings import CalibrationSettings
from demur.models.generation import GenerationSettings
from demur.records import Gate
from demur.steering.generate import decide, generate
from demur.steering.policies import NONE
from tests.calibration import grounds

SETTINGS = CalibrationSettings(max_new_tokens=8, late_replies=60, late_budget=0.1)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    bench, features, validation = grounds.bench(), grounds.joined(), grounds.prompts(15)
    base = base_policy(bench, features)
    shut = {row.id for row in validation.rows}
    late, report = set_late(bench, base, features.continuation, validation, shut, SETTINGS, folder)
    return bench, base, validation, late, report, folder


def test_smoothing_is_the_gates_own(found):
    bench, base, validation, late, _, _ = found
    talk = [row.conversation for row in validation.rows[:4]]
    ids = [[40, 41, 42, 43, 44, 45], [50, 51], [60, 61, 62], [70]]

    def trace(tau: float) -> list[tuple[float, ...]]:
        how = late.model_copy(update={"opens": 1e30, "closes": 1e30, "tau": tau})
        gate = Gate(sensor=base.gate.sensor, threshold=1e30, continuation=how)
        seen = decide(bench.lm, bench.saes, talk, base.model_copy(update={"gate": gate}), replies=ids)
        return [s["trace"] for s in seen]

    for raw, slow in zip(trace(1.0), trace(4.0), strict=True):
        assert smoothed(raw, 4.0) == pytest.approx(slow, abs=2e-4)  # a transcript keeps four digits


def test_replies_to_benign_prompts_open_it_no_more_than_the_budget(found):
    """The same count from the gate itself, on the same replies."""
    bench, base, validation, late, report, _ = found
    rows = [row for row in validation.rows if row.label == "benign"]
    talk = [row.conversation for row in rows]
    plain = dict(generate(bench.lm, bench.saes, talk, [NONE] * len(talk), GenerationSettings(max_new_tokens=8)))
    ids = [bench.lm.tokenizer(plain[i].text, add_special_tokens=False)["input_ids"] for i in range(len(talk))]
    gate = Gate(sensor=base.gate.sensor, threshold=1e30, continuation=late)
    seen = decide(bench.lm, bench.saes, talk, base.model_copy(update={"gate": gate}), replies=ids)
    assert report.benign.n == sum(bool(i) for i in ids)
    assert sum(s["open"] for s in seen) == report.benign.k
    assert report.benign.rate <= SETTINGS.late_budget
    assert report.promise.kept and late.closes <= late.opens


def test_replies_are_made_and_read_once(found, monkeypatch):
    bench, base, validation, late, report, folder = found
    before = (folder / REPLIES).read_bytes()
    monkeypatch.setattr("demur.calibration.late.answers", None)
    shut = {row.id for row in validation.rows}
    again = set_late(bench, base, grounds.joined().continuation, validation, shut, SETTINGS, folder)
    assert again == (late, report)
    assert (folder / REPLIES).read_bytes() == before
