"""`demur inspect features.json` shows what was found of features, and old files still load."""

import json
import sys
from pathlib import Path

import pytest

from demur.cli import main
from demur.records import (
    Dormant,
    Dose,
    Evidence,
    Feature,
    FeatureSet,
    Interaction,
    Meaning,
    Removal,
)

SHIPPED = Path(__file__).parents[2] / "src" / "demur" / "shipped" / "smollm2-135m"


def made() -> FeatureSet:
    meaning = Meaning(
        kinds={"credit_theft": 0.75},
        curve=(Dose(dose=0.5, refused=0.25), Dose(dose=1.0, refused=1.0)),
        nearest={17: 0.44},
        path=("money, banks", "theft"),
    )
    feature = Feature(
        id=3, role="actuator", level=4.0, evidence=Evidence(raised=("I",)), name="writes I; on steal", meaning=meaning
    )
    candidate = Feature(id=3, role="actuator", level=2.0, scores={"descent": 1.5, "rank": 2.0, "log_odds_gain": 7.25})
    return FeatureSet(
        model="m",
        model_hash="",
        sae="s",
        sae_hash="",
        site="1.resid_post",
        method="effect",
        how="by hand",
        features=(feature,),
        candidates=(candidate,),
        pruned=(Removal(feature=9, left=1, log_odds=2.5, refused=0.875, degenerate=0.0, gone=True),),
        interactions=(Interaction(features=(3, 9), together=5.0, apart=3.0),),
        dormant=(Dormant(feature=21, before=0.5, after=1.75),),
        curve=(Dose(dose=1.0, refused=0.9375, degenerate=0.0625),),
    )


def inspected(path: Path, monkeypatch, capsys, *more: str) -> str:
    monkeypatch.setattr(sys, "argv", ["demur", "inspect", str(path), *more])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_what_was_found_is_shown_and_is_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "features.json"
    path.write_text(made().model_dump_json())
    assert FeatureSet.load(path) == made()
    text = inspected(path, monkeypatch, capsys)
    for words in (
        "writes I",
        "credit theft 75%",
        "0.5: 25%",
        "17 0.44",
        "money",
        "88%",
        "+2.00",
        "+1.75",
        "94%",
        "7.25",
    ):
        assert words in text, words
    body = json.loads(inspected(path, monkeypatch, capsys, "--json"))
    assert body["pruned"][0]["feature"] == 9
    assert body["features"][0]["name"] == "writes I; on steal"


def test_files_of_before_load_and_show_nothing_of_it(monkeypatch, capsys):
    path = SHIPPED / "features-paper.json"
    old = FeatureSet.load(path)
    assert old.features
    assert (old.features[0].meaning, old.pruned) == (Meaning(), ())
    assert "Pruned" not in inspected(path, monkeypatch, capsys)


def test_features_get_other_names():
    found = made().renamed({3: "refusing to steal", 99: "nobody"})
    assert [f.name for f in found.features] == ["refusing to steal"]
    assert found.features[0].meaning == made().features[0].meaning
