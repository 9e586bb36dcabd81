"""`demur attack` from the command line, on a tiny model: every attack, resumption, another judge, the report."""

import json
from pathlib import Path

import pytest
import torch

from demur.evaluation.attacks.run import ATTACKS, read_attacks
from demur.evaluation.runner import TRANSCRIPTS, read_transcripts
from demur.files import read_json, write_jsonl
from tests import tiny
from tests.verbs.test_bad_input import run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, its SAEs, a policy behind a gate that is open, and files for every attack."""
    home = tmp_path_factory.mktemp("world")
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(home / "model")
    lm.tokenizer.save_pretrained(home / "model")
    for layer in (0, 1):
        sae = tiny.sae("llama", layer).to(torch.zeros(()))
        sae.config = sae.config.model_copy(update={"model_hash": lm.hash})
        sae.save(home / f"sae{layer}")
    tiny.policy(name="ours", threshold=-1e3).model_copy(update={"model_hash": lm.hash}).save(home / "ours.toml")
    jailbreaks = [
        {
            "id": f"{f}{i}",
            "prompt": f"{f} {i}!",
            "label": "harmful",
            "family": f,
            "goal": f"goal {i}",
            "source": "elsewhere",
        }
        for f in ("one", "two")
        for i in range(3)
    ]
    write_jsonl(home / "jailbreaks.jsonl", jailbreaks)
    write_jsonl(home / "wrappers.jsonl", [{"id": "w", "family": "codes", "transform": "rot13"}])
    scripts = [
        {"id": f"s{label[0]}", "turns": ["One?", "Two?"], "label": label, "pair": "p", "goal": "Two"}
        for label in ("harmful", "benign")
    ]
    write_jsonl(home / "scripts.jsonl", scripts)
    (home / "attacker.md").write_text("Reach {{ objective }}.")
    write_jsonl(home / "goals.jsonl", [{"id": f"h{i}", "prompt": f"Harm {i}", "label": "harmful"} for i in range(2)])
    return home


def words(home: Path, folder: Path, *attacks: str) -> list[str]:
    common = ["--policy", home / "ours.toml", "--model", home / "model", "--max-new-tokens", "3", "--json"]
    common += ["--sae", home / "sae0", "--sae", home / "sae1", "--goals", home / "goals.jsonl", "--run", folder]
    return [str(w) for w in ["attack", *attacks, *common]]


def every(home: Path) -> list[str]:
    return [
        "--family-file", str(home / "jailbreaks.jsonl"), "--per-family", "2",
        "--wrapper-file", str(home / "wrappers.jsonl"),
        "--crescendo", "scripts", "--script-file", str(home / "scripts.jsonl"),
        "--crescendo", "live", "--crescendo-turns", "2", "--crescendo-goals", "1", "--attacker-tokens", "4",
        "--attacker-prompt", str(home / "attacker.md"),
        "--gcg", "--gcg-goals", "1", "--gcg-steps", "1", "--gcg-candidates", "3", "--gcg-length", "4",
        "--recovery", "--recovery-prompts", "2", "--recovery-steps", "2", "--recovery-span", "2",
    ]  # fmt: skip


def test_every_attack_in_one_run_that_is_resumed_judged_anew_and_reported(world, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "r"
    code, out, err = run(monkeypatch, capsys, *words(world, folder, *every(world)))
    assert code == 0, err
    body = json.loads(out)
    won = {(r["attack"], r["family"], r["label"], r["policy"]): r for r in body["attacks"]}
    assert {key[0] for key in won} == {"jailbreaks", "wrappers", "crescendo", "crescendo, live", "gcg", "recovery"}
    assert {key[1] for key in won if key[0] == "jailbreaks"} == {"one", "two", "all families"}
    assert {key[3] for key in won} == {"none", "ours"}
    assert won["jailbreaks", "one", "harmful", "ours"]["n"] == 2
    assert won["crescendo", "crescendo", "benign", "ours"]["cut"] is None
    assert won["crescendo", "last turn alone", "harmful", "ours"]["control"]
    assert won["gcg", "against ours", "harmful", "none"]["n"] == 1
    assert {t.set for t in read_transcripts(folder / TRANSCRIPTS)} >= {"jailbreaks", "wrappers", "crescendo"}
    assert {r["set"] for r in body["results"]} == {t.set for t in read_transcripts(folder / TRANSCRIPTS)}

    monkeypatch.setattr("demur.evaluation.runner.generate", lambda *a, **k: iter(()))
    monkeypatch.setattr("demur.evaluation.attacks.attackers.generate", None)
    code, out, err = run(monkeypatch, capsys, *words(world, folder, *every(world)), "--judge", "classifier")
    assert code == 0, err
    assert {r["judge"] for r in json.loads(out)["attacks"]} == {"classifier"}

    code, _, err = run(monkeypatch, capsys, *words(world, folder, "--gcg", "--gcg-goals", "2"))
    assert code == 1
    assert "attacks: gcg" in err
    code, out, err = run(monkeypatch, capsys, "report", "--run", str(folder))
    assert code == 0, err
    page = (folder / "report.html").read_text()
    assert "Attacks" in page and "all families" in page and "request re-sampled" in page


def test_more_attacks_join_those_that_a_run_has(world, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "r"
    first = ["--family-file", str(world / "jailbreaks.jsonl")]
    assert run(monkeypatch, capsys, *words(world, folder, *first))[0] == 0
    assert run(monkeypatch, capsys, *words(world, folder, "--wrapper-file", str(world / "wrappers.jsonl")))[0] == 0
    assert [r.attack for r in read_attacks(folder)] == ["wrappers"] * 2 + ["jailbreaks"] * 6
    assert set(read_json(folder / "manifest.json")["settings"]["attacks"]) == {"jailbreaks", "wrappers"}


def test_an_evaluation_of_rows_with_families_says_what_each_won(world, tmp_path, monkeypatch, capsys):
    common = words(world, tmp_path / "r", "--prompts", str(world / "jailbreaks.jsonl"), "--policy", "none")
    asked = [w for w in common if w not in ("--goals", str(world / "goals.jsonl"))]
    code, out, err = run(monkeypatch, capsys, "evaluate", *asked[1:])
    assert code == 0, err
    won = json.loads(out)["attacks"]
    assert {(r["attack"], r["family"]) for r in won} == {("elsewhere", f) for f in ("one", "two", "all families")}
    assert (tmp_path / "r" / ATTACKS).is_file()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "no attack was named; type --family-file FILE"),
        (["--family-file", "goals.jsonl"], "has no family"),
        (["--wrapper-file", "nowhere.jsonl"], "does not exist"),
        (["--wrapper-file", "wrappers.jsonl", "--per-family", "0"], "--per-family 0"),
        (["--crescendo", "live", "--attacker-url", "http://127.0.0.1:9/v1"], "type --attacker-model NAME"),
        (["--recovery", "--recovery-site", "middle"], "site 'middle' is not known"),
        (["--policy", "canned.toml", "--recovery"], "policy canned edits nothing"),
    ],
)
def test_bad_input_is_one_clear_sentence(world, tmp_path, monkeypatch, capsys, flags, why):
    (world / "canned.toml").write_text('name = "canned"\ncanned = "No."\n')
    flags = [str(world / f) if (world / f).is_file() else f for f in flags]
    code, out, err = run(monkeypatch, capsys, *words(world, tmp_path / "r", *flags))
    assert (code, out) == (1, "")
    assert why in " ".join(err.split())
    assert "Traceback" not in err
