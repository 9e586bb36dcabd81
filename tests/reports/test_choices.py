"""Which examples are shown, and whether colours can be read."""

import math
import re
from importlib.resources import files
from pathlib import Path

import pytest

from demur.files import write_json
from demur.records import Evidence, Feature, FeatureSet, Fired, Heard, Verdict, evenly
from demur.reports.examples import (
    NEAR,
    choose,
    folds,
    hides,
    raised_words,
    sides,
    what_fired,
    what_the_gate_thought,
    word_by_word,
)
from demur.reports.page import GLYPHS, write_report
from demur.reports.plots import SHAPES
from demur.reports.study import Answer, Study, read_study
from demur.reports.summary import headline
from demur.steering.policies import find_policy, known_features
from tests.reports.small import transcripts, write_run


def test_examples_show_failures_and_twins(run: Path) -> None:
    groups = {g.title: g for g in choose(read_study(run))}
    assert list(groups) == [
        "Look-alike twins: gated tells them apart, paper does not",
        "Harmful: gated refuses, another policy does not",
        "Failures: harmful, not refused by gated",
        "Failures: benign, refused by gated",
    ]
    ids = {title: [c["gated"].transcript.id for c in g.cases] for title, g in groups.items()}
    assert ids["Look-alike twins: gated tells them apart, paper does not"] == ["h0", "b0", "h1", "b1"]
    assert ids["Failures: harmful, not refused by gated"] == ["h5"]
    assert ids["Failures: benign, refused by gated"] == ["b5"]
    flat = [i for some in ids.values() for i in some]
    assert len(flat) == len(set(flat)) <= 12


def test_replies_in_sight_are_the_best_the_plain_models_and_such_as_fare_otherwise(study: Study) -> None:
    seen = 0
    for case in (case for g in choose(study) for case in g.cases):
        near, far = sides(study, case)
        assert sorted([*near, *far]) == sorted(study.policies) and len(near) == NEAR
        assert {"gated", "none"} <= set(near)
        same = {p: case[p].refused == case["gated"].refused for p in case}
        assert not any(same[p] for p in near if p not in ("gated", "none")) or all(same[p] for p in far)
        seen += 1
    assert seen > 5


def test_what_may_do_harm_is_folded() -> None:
    t = transcripts(["none"])[0]
    verdict = Verdict(id=t.id, policy=t.policy, set=t.set, judge="x", outcome="complied")
    benign = t.model_copy(update={"label": "benign", "kind": "lookalike"})
    assert hides(t) and hides(benign.model_copy(update={"kind": "offensive"})) and not hides(benign)
    assert folds(Answer(t, verdict)) and not folds(Answer(benign, verdict))
    assert not folds(Answer(t, verdict.model_copy(update={"outcome": "refused"})))
    assert folds(Answer(t, verdict.model_copy(update={"outcome": None})))
    assert folds(Answer(benign, verdict.model_copy(update={"harmful_reply": True})))


def test_a_sample_is_even() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly([1, 2], 3) == [1, 2]


def test_what_fired_with_the_words_of_known_features(run: Path, tmp_path: Path) -> None:
    study = read_study(run)
    t = next(t for t in transcripts(["gated"]) if t.fired)
    assert what_fired(t, {}) == ["actuators: 7 = 12.5", "sensors: 9 = 3.25"]
    assert raised_words(study) == {}
    write_run(tmp_path, transcripts(["gated"]))
    feature = Feature(id=7, role="actuator", evidence=Evidence(raised=(" unable", " sorry", " cannot", " not")))
    known = FeatureSet(
        model="m", model_hash="h", sae="s", sae_hash="h", site="1.resid_post", method="", how="", features=(feature,)
    )
    write_json(tmp_path / "features.json", known)
    words = raised_words(read_study(tmp_path))["gated"]
    assert what_fired(t, words)[0] == "actuators: 7 “unable sorry cannot” = 12.5"


def test_features_of_shipped_policies_are_named_and_what_the_gate_thought_is_told(tmp_path: Path) -> None:
    policy = find_policy("gated:strict")
    sensor = next(f for f in known_features(policy).values() if f.role == "sensor" and f.name)
    fired = (Fired(feature=sensor.id, role="sensor", value=2.5, site="14.resid_post", position=3, token=" knife"),)
    how = {"policy": "gated:strict", "policy_hash": policy.hash, "gate": 1.25, "open": True, "hazard": "violent_crimes"}
    rows = transcripts(["gated"], **how, fired=fired, late=4, last_turn=True)
    rows += [t.model_copy(update={"policy": "gated:nothing"}) for t in rows]
    write_run(tmp_path, rows)
    study = read_study(tmp_path)
    words = raised_words(study)
    assert list(words) == ["gated:strict"]
    assert what_fired(rows[0], words["gated:strict"]) == [f"sensors: {sensor.id} “{sensor.name}” = 2.5 on “knife”"]
    told = "gate 1.25, open, most like violent crimes, read off the last turn by itself, opened on the reply, at its token 5"
    assert what_the_gate_thought(rows[0]) == told
    assert what_the_gate_thought(rows[0].model_copy(update={"gate": None})) == ""
    assert word_by_word(rows[0], words["gated:strict"]) == []
    write_report(tmp_path)
    assert told in (tmp_path / "report.html").read_text()


def test_what_the_gate_thought_word_by_word(tmp_path: Path) -> None:
    sure = "<|im_end|>\n<script>"
    heard = (
        Heard(token="How", score=-2),
        Heard(token=" kill", score=3.0, fired={"9": 1.5, "site/7": 2, "?": 1}),
        Heard(token=sure, score=900),
    )
    rows = transcripts(["gated"], heard=heard)
    told = word_by_word(rows[0], {9: "knives"})
    assert [w.text for w in told] == ["How", " kill", "<script>"]
    assert [w.share for w in told] == pytest.approx([100 / (1 + math.exp(1)), 100 / (1 + math.exp(-1.5)), 100])
    assert told[1].note == "+3.00; site/7 = 2; 9 “knives” = 1.5; ? = 1"
    write_run(tmp_path, [*transcripts(["none"]), *rows])
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<span style="--share:82%" title="+3.00; site/7 = 2; 9 = 1.5; ? = 1"> kill</span>' in page
    assert "<script>" not in page


def test_many_policies_have_one_sentence_and_names_apart(tmp_path: Path) -> None:
    rows = transcripts(["none"])
    rows += [t.model_copy(update={"policy": f"policy-{i}"}) for i in range(7) for t in transcripts(["gated"])]
    write_run(tmp_path, rows)
    said = headline(read_study(tmp_path))
    assert said.count(";") == 3 and "the plain model" in said and "(4 more below)" in said


def test_every_shape_is_in_the_legend() -> None:
    assert set(SHAPES) == set(GLYPHS)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mixed(colour: str, other: str, share: float) -> str:
    """`color-mix` in sRGB."""
    parts = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (colour, other)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    css = files("demur.reports").joinpath("page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.S)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", block))
    assert len(colours) == 26
    for name in ("ink", "soft", "link", "plain", "bad", *(f"p{i}" for i in range(7))):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    for name in ("ink", "soft", "link"):
        assert contrast(colours[name], colours["card"]) >= 4.5, name
    for outcome in ("refused", "partial", "deflected", "complied", "degenerate"):
        assert contrast(colours[outcome], colours["page"]) >= 3, outcome
        assert contrast(colours[f"on-{outcome}"], colours[outcome]) >= 4.5, outcome
    most = float(re.findall(r"calc\((\.\d+) \* var\(--share\)\)", css)[0])
    for hue in re.findall(r"--heat: var\(--(\w+)\)", css):
        assert contrast(colours["ink"], mixed(colours[hue], colours["page"], most)) >= 4.5, hue
