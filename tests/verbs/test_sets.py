"""`demur sets`, and `demur inspect` on prompts and policies by name: from the command that a user would type."""

import json
import os
import subprocess
import sys

import pytest

from demur.data.registry import NAMES
from demur.data.sets import named_set
from demur.steering.policies import find_policy
from tests.data.standin import build, write
from tests.verbs.test_bad_input import run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMUR_DATA", str(tmp_path / "other"))
    build(tmp_path / "xstest", "Paul/XSTest")
    build(tmp_path / "sorry-bench", "sorry-bench/sorry-bench-202503")
    return tmp_path


def test_the_listing_names_every_set_and_how_to_get_what_is_not_there(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "sets", "--data-dir", folder, "--json")
    assert code == 0
    found = {row["name"]: row for row in json.loads(out)["sets"]}
    assert list(found) == list(NAMES)
    assert found["xstest"]["where"] == str(folder / "xstest")
    assert (found["xstest"]["n"], found["xstest"]["hash"]) == (4, named_set("xstest", folder).hash)
    assert found["advbench"]["where"] is None
    assert "hf download walledai/AdvBench" in found["advbench"]["how"]
    code, out, _ = run(monkeypatch, capsys, "sets", "--data-dir", folder)
    assert code == 0
    assert all(name in out for name in NAMES)


def test_a_set_is_counted_by_label_kind_and_category(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "sets", "sorry-bench", "--data-dir", folder, "--json")
    body = json.loads(out)
    assert (code, body["n"], body["origin"]["moved"]) == (0, 44, 7)
    assert sum(row["n"] for row in body["counts"]) == 44
    assert {"label": "benign", "kind": "offensive", "category": "controversial_opinion", "n": 3} in body["counts"]
    assert body["origin"]["columns"] == {
        "sorry_bench": {"prompt": "turns", "category": "category", "label": '"harmful"'}
    }
    _, text, _ = run(monkeypatch, capsys, "sets", "sorry-bench", "--data-dir", folder)
    assert "prompt ← turns" in text
    assert "7 rows that the set calls harmful are merely offensive here" in text


def test_inspect_takes_a_set_by_name_and_any_table(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "inspect", "xstest", "--data-dir", folder, "--json")
    assert (code, json.loads(out)["origin"]["name"]) == (0, "xstest")
    path = write(folder / "mine.csv", [{"ask": "Hi", "bad": "n"}, {"ask": "Harm", "bad": "y"}])
    words = ("inspect", path, "--columns", "prompt=ask,label=bad,harmful=y", "--json")
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert {(row["label"], row["n"]) for row in json.loads(out)["counts"]} == {("benign", 1), ("harmful", 1)}


def test_the_data_folder_may_be_named_before_or_after_the_verb(folder, monkeypatch, capsys):
    for words in (
        ("--data-dir", folder, "sets", "xstest", "--json"),
        ("sets", "xstest", "--json", "--data-dir", folder),
    ):
        code, out, _ = run(monkeypatch, capsys, *words)
        assert (code, json.loads(out)["n"]) == (0, 4)
        assert os.environ["DEMUR_DATA"] == str(folder)


def test_listing_sets_waits_for_no_model():
    code = "import sys, demur.verbs.sets; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_inspect_takes_a_policy_by_name_at_a_level_or_dose(monkeypatch, capsys):
    for name in ("gated", "gated:strict", "paper@0.8"):
        code, out, _ = run(monkeypatch, capsys, "inspect", name, "--json")
        assert (code, json.loads(out)["hash"]) == (0, find_policy(name).hash)
