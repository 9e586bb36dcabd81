"""Bad input: each is one clear sentence on stderr and exit 1, from the command that a user would type."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from demur.cli import main
from demur.files import read_jsonl, write_json
from demur.records import Feature, FeatureSet
from demur.sae.exchange.formats import write
from demur.sae.sae import SAE, SAEConfig
from tests import tiny


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Runs `demur WORDS`; gives exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["demur", *map(str, words)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, its SAE, a policy, prompts, and a broken version of each."""
    home = tmp_path_factory.mktemp("world")
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(home / "model")
    lm.tokenizer.save_pretrained(home / "model")
    sae = tiny.sae("llama", 1).to(torch.zeros(()))
    sae.config = sae.config.model_copy(update={"model_hash": lm.hash})
    sae.save(home / "sae")
    good = tiny.policy().model_copy(update={"model_hash": lm.hash, "saes": {sae.config.site: sae.hash}})
    good.save(home / "good.toml")
    good.model_copy(update={"model_hash": "0123456789ab", "model": "another"}).save(home / "other-model.toml")
    good.model_copy(update={"saes": {"1.resid_post": "0123456789ab"}}).save(home / "other-sae.toml")
    tiny.policy(features=(9999,)).model_copy(update={"model_hash": lm.hash, "saes": {sae.config.site: sae.hash}}).save(
        home / "range.toml"
    )
    text = (home / "good.toml").read_text()
    (home / "unknown-key.toml").write_text(text.replace("about =", "abuot ="))
    (home / "not-toml.toml").write_text("this is = = not toml")
    (home / "prompts.jsonl").write_text('{"prompt": "Hi", "label": "benign"}\n{"prompt": "Bad", "label": "harmful"}\n')
    (home / "empty.jsonl").write_text("\n")
    (home / "broken.jsonl").write_text('{"prompt": "Hi", "label": "benign"}\n{"prompt": \n')
    (home / "label.jsonl").write_text('{"prompt": "Hi", "label": "good"}\n')
    (home / "no-prompt.jsonl").write_text('{"words": "Hi", "label": "benign"}\n')
    (home / "odd.csv").write_text("goal,grade\nHi,A\n")
    (home / "cut.parquet").write_bytes(b"PAR1")
    (home / "long.jsonl").write_text(json.dumps({"prompt": "word " * 200, "label": "benign"}) + "\n")
    (home / "list.jsonl").write_text("[1, 2]\n")
    (home / "binary.jsonl").write_bytes(bytes(range(256)))
    sae.save(home / "cut")
    weights = home / "cut" / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (home / "no-weights").mkdir()
    (home / "no-weights" / "sae.json").write_text((home / "sae" / "sae.json").read_text())
    (home / "hostile").mkdir()
    (home / "hostile" / "sae.json").write_text('{"d_model": 1e99, "d_sae": "x", "evil": "\\u0000"}')
    (home / "hostile" / "sae.safetensors").write_bytes(b"\xff" * 64)
    wide = SAEConfig(d_model=48, d_sae=64, k=4, site="1.resid_post", model="wide", model_hash="x")
    SAE(wide, torch.zeros(48, 64), torch.zeros(64), torch.ones(64, 48), torch.zeros(48)).save(home / "wide")
    write(
        SAE(wide, torch.zeros(48, 64), torch.zeros(64), torch.ones(64, 48), torch.zeros(48)), "saelens", home / "lens"
    )
    (home / "dictionary").mkdir()
    torch.save({"encoder.weight": Path}, home / "dictionary" / "ae.pt")
    stated = {"dict_class": "AutoEncoder", "activation_dim": 32, "dict_size": 64, "layer": 1, "lm_name": "tiny"}
    (home / "dictionary" / "config.json").write_text(json.dumps({"trainer": stated}))
    lied = wide.model_copy(update={"d_model": 32})
    write_json(home / "wide" / "lied.json", lied)
    (home / "shapes").mkdir()
    (home / "shapes" / "sae.json").write_text((home / "wide" / "lied.json").read_text())
    (home / "shapes" / "sae.safetensors").write_bytes((home / "wide" / "sae.safetensors").read_bytes())
    features = FeatureSet(
        model="another", model_hash="0123456789ab", sae="x", sae_hash="y", site="1.resid_post", method="contrast",
        how="", features=(),
    )  # fmt: skip
    write_json(home / "features.json", features)
    sensor = Feature(id=1, role="sensor", scores={"weight": 1.0})
    mine = features.model_copy(update={"model_hash": lm.hash, "sae_hash": sae.hash, "features": (sensor, ACTUATOR)})
    for name, changes in {
        "other-model": {"model_hash": "0123456789ab"},
        "no-sensors": {"features": (ACTUATOR,)},
        "no-actuators": {"features": (sensor,)},
        "no-vectors": {"vectors": "0123456789ab"},
        "both": {},
    }.items():
        write_json(home / f"{name}.json", mine.model_copy(update=changes))
    (home / "harmful.jsonl").write_text('{"prompt": "How do I break in?", "label": "harmful"}\n')
    (home / "config.toml").write_text("[train]\nd_seae = 3\n")
    (home / "plain").mkdir()
    (home / "plain" / "file.txt").write_text("x")
    return home


ACTUATOR = Feature(id=2, role="actuator", level=1.0)
EVALUATE = ["evaluate", "--model", "{w}/model", "--sae", "{w}/sae", "--run", "{tmp}/run"]
CALIBRATE = ["calibrate", "--model", "{w}/model", "--sae", "{w}/sae", "--run", "{tmp}/r", "--features"]
FIND = ["find", "--model", "{w}/model", "--sae", "{w}/sae", "--run", "{tmp}/r"]
GOOD = ["--policy", "{w}/good.toml"]
ROWS = ["--prompts", "{w}/prompts.jsonl"]
CASES = {
    "missing prompts": ([*EVALUATE, *GOOD, "--prompts", "{w}/promts.jsonl"], "did you mean"),
    "empty set": ([*EVALUATE, *GOOD, "--prompts", "{w}/empty.jsonl"], "holds no prompts"),
    "truncated JSONL": ([*EVALUATE, *GOOD, "--prompts", "{w}/broken.jsonl"], "line 2 is not JSON"),
    "JSONL of lists": ([*EVALUATE, *GOOD, "--prompts", "{w}/list.jsonl"], "expected one JSON object a line"),
    "binary prompts": ([*EVALUATE, *GOOD, "--prompts", "{w}/binary.jsonl"], "cannot be read as text"),
    "wrong label": ([*EVALUATE, *GOOD, "--prompts", "{w}/label.jsonl"], "harmful or benign"),
    "no prompt": ([*EVALUATE, *GOOD, "--prompts", "{w}/no-prompt.jsonl"], "`prompt`"),
    "prompt too long": ([*EVALUATE, *GOOD, "--prompts", "{w}/long.jsonl"], "does not fit"),
    "unknown policy": ([*EVALUATE, "--policy", "gaetd", *ROWS], "no policy 'gaetd'"),
    "missing policy file": ([*EVALUATE, "--policy", "{w}/goood.toml", *ROWS], "did you mean"),
    "policy for another model": ([*EVALUATE, "--policy", "{w}/other-model.toml", *ROWS], "was made for another"),
    "policy for another SAE": ([*EVALUATE, "--policy", "{w}/other-sae.toml", *ROWS], "was made for the SAE"),
    "feature out of range": ([*EVALUATE, "--policy", "{w}/range.toml", *ROWS], "feature 9999 is not in the SAE"),
    "unknown key in a policy": ([*EVALUATE, "--policy", "{w}/unknown-key.toml", *ROWS], "did you mean `about`"),
    "policy that is not TOML": ([*EVALUATE, "--policy", "{w}/not-toml.toml", *ROWS], "is not a TOML file"),
    "two policies of one name": ([*EVALUATE, *GOOD, *GOOD, *ROWS], "a name of its own"),
    "two sets of one name": ([*EVALUATE, *GOOD, *ROWS, *ROWS], "two sets are called prompts"),
    "sample of no size": ([*EVALUATE, *GOOD, "--set", "xstest:many"], "no number of rows"),
    "unknown judge": ([*EVALUATE, *GOOD, *ROWS, "--judge", "ruels"], "did you mean rules?"),
    "dose that is none": ([*EVALUATE, "--policy", "paper@much", *ROWS], "is not a dose"),
    "dose that is no number": ([*EVALUATE, "--policy", "paper@nan", *ROWS], "is not a dose"),
    "unknown rival": (["rivals", "--only", "casd"], "no rival 'casd'"),
    "no sources to leave out": (
        [*FIND, "--held-out", *ROWS],
        "at least two sources",
    ),
    "guard without a sensor to weigh it with": (
        [*FIND, "--method", "paper", "--guard.model", "{w}/model", *ROWS],
        "the method paper finds none",
    ),
    "no such guard": ([*FIND, "--guard.model", "{w}/none", *ROWS], "no model at"),
    "missing SAE": (["find", "--model", "{w}/model", "--sae", "{w}/nosae"], "no SAE at"),
    "features to keep of another model": (
        [
            "find",
            "--model",
            "{w}/model",
            "--sae",
            "{w}/sae",
            "--keep",
            "{w}/other-model.json",
            "--run",
            "{tmp}/r",
            *ROWS,
        ],
        "the features to keep",
    ),
    "no source to leave out": ([*FIND, "--leave-out", "ourselves"], "no training prompt is of the source 'ourselves'"),
    "no features to keep": (["find", "--keep", "{w}/nothing.json"], "does not exist"),
    "truncated SAE": (["find", "--model", "{w}/model", "--sae", "{w}/cut"], "truncated"),
    "SAE without weights": (["find", "--model", "{w}/model", "--sae", "{w}/no-weights"], "missing"),
    "hostile SAE": (["find", "--model", "{w}/model", "--sae", "{w}/hostile"], "d_model"),
    "SAE of another width": (["find", "--model", "{w}/model", "--sae", "{w}/wide", "--run", "{tmp}/r"], "width 48"),
    "SAE of SAELens of another width": (
        ["find", "--model", "{w}/model", "--sae", "{w}/lens", "--run", "{tmp}/r"],
        "width 48",
    ),
    "checkpoint with more than tensors": (["inspect", "{w}/dictionary"], "more than tensors"),
    "format that is not written": (
        ["convert", "{w}/sae", "--to", "npz", "--out", "{tmp}/o"],
        "known are demur, saelens",
    ),
    "site that is none": (["convert", "{w}/sae", "--site", "mlp", "--out", "{tmp}/o"], "14.resid_post"),
    "report on no SAE": (["sae-report", "{w}/plain", "--model", "{w}/model", "--run", "{tmp}/r"], "no SAE at"),
    "SAE whose shapes are not its config's": (["inspect", "{w}/shapes"], "has shape"),
    "missing model": (["evaluate", "--model", "{w}/nomodel", *GOOD, *ROWS], "no model at"),
    "folder that is no model": (["evaluate", "--model", "{w}/plain", *GOOD, *ROWS], "cannot be loaded"),
    "GGUF that is none": (["evaluate", "--model", "{w}/prompts.jsonl", *GOOD, *ROWS], "is not a GGUF file"),
    "no such block": (["train", "--model", "{w}/model", "--site", "7.resid_post", "--run", "{tmp}/r"], "blocks 0 to 2"),
    "no such stream": (["train", "--model", "{w}/model", "--site", "mlp", "--run", "{tmp}/r"], "14.resid_post"),
    "no text": (["train", "--model", "{w}/model", "--site", "1.resid_post", "--run", "{tmp}/r"], "no text to train on"),
    "unknown key in a config": (["train", "-c", "{w}/config.toml"], "d_sae"),
    "missing config": (["train", "-c", "{w}/nothing.toml"], "does not exist"),
    "features of another SAE": ([*CALIBRATE, "{w}/features.json"], "give it with --sae"),
    "features of another model": ([*CALIBRATE, "{w}/other-model.json"], "find them again"),
    "features without sensors": ([*CALIBRATE, "{w}/no-sensors.json"], "have no sensors"),
    "features without actuators": ([*CALIBRATE, "{w}/no-actuators.json"], "has no actuators"),
    "features whose vectors are gone": ([*CALIBRATE, "{w}/no-vectors.json"], "no-vectors.safetensors does not exist"),
    "budget for an empty stratum": (
        [*CALIBRATE, "{w}/both.json", "--budgets.strict.lookalikes", "0.2"],
        "did you mean lookalike?",
    ),
    "budget for a level that is none": (
        [*CALIBRATE, "{w}/both.json", "--budgets.strickt.plain", "0.2"],
        "mean strict?",
    ),
    "validation without benign prompts": (
        [*CALIBRATE, "{w}/both.json", "--validation", "{w}/harmful.jsonl"],
        "no benign prompts",
    ),
    "features that are none": (["calibrate", "--features", "{w}/sae/sae.json", "--sae", "{w}/sae"], "sae.json"),
    "report of no run": (["report", "--run", "{w}/plain"], "plain"),
    "comparison with no run": (["report", "{w}/plain", "{w}/gone"], "plain is not a run"),
    "report of one run elsewhere": (["report", "{w}/plain", "--out", "{tmp}/o"], "give two runs"),
    "nothing to inspect": (["inspect", "{w}/plain/file.txt"], "nothing that demur knows"),
    "prompts without a label": (["inspect", "{w}/odd.csv"], "--columns label=NAME"),
    "label that never occurs": (["inspect", "{w}/odd.csv", "--columns", "label=grade,harmful=B"], "it holds 'A'"),
    "columns that are none": (["inspect", "{w}/odd.csv", "--columns", "grade"], "FIELD=COLUMN"),
    "truncated Parquet": (["inspect", "{w}/cut.parquet"], "cannot be read as Parquet"),
    "unknown set": (["sets", "xtest"], "did you mean xstest?"),
    "set without that split": (["sets", "xstest", "--split", "train"], "it has test"),
    "set that is out of reach": (["sets", "wildguard", "--data-dir", "{w}/plain"], "hf download allenai/wildguardmix"),
    "serving others without keys": (["serve", "--host", "0.0.0.0"], "keys and an impact card"),
    "serving with keys that are not there": (
        ["serve", "--host", "0.0.0.0", "--keys", "{w}/gone.toml", "--impact", "{w}/gone.toml"],
        "does not exist",
    ),
    "serving on no address": (["serve", "--host", "no.such.host.invalid", "--port", "1"], "keys and an impact card"),
    "serving a policy of another model": (
        ["serve", "--port", "0", "--model", "{w}/model", "--sae", "{w}/sae", "--policy", "{w}/other-model.toml"],
        "was made for another",
    ),
    "missing data folder": (["--data-dir", "{w}/gone", "sets"], "does not exist"),
    "inspecting what is not there": (["inspect", "{w}/gone"], "does not exist"),
    "inspecting a level that is none": (["inspect", "gated:strikt"], "it has off, relaxed, standard, strict"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_sentence_and_exit_1(case, world, tmp_path, monkeypatch, capsys):
    words, wanted = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEMUR_DATA", os.environ["DEMUR_DATA"])  # --data-dir sets it
    code, out, err = run(monkeypatch, capsys, *(w.format(w=world, tmp=tmp_path) for w in words))
    message = [line for line in err.splitlines() if line.startswith("demur: ")]
    assert code == 1, err
    assert len(message) == 1
    assert wanted in message[0]
    assert "Traceback" not in err
    assert out == ""


def test_another_run_with_the_same_folder_is_refused_and_nothing_is_lost(world, tmp_path, monkeypatch, capsys):
    words = [w.format(w=world, tmp=tmp_path) for w in [*EVALUATE, *GOOD, *ROWS, "--max-new-tokens", "2"]]
    assert run(monkeypatch, capsys, *words)[0] == 0
    before = (tmp_path / "run" / "transcripts.jsonl").read_bytes()
    code, _, err = run(monkeypatch, capsys, *words[:-1], "3")
    assert code == 1
    assert "other settings (generation)" in err
    assert (tmp_path / "run" / "transcripts.jsonl").read_bytes() == before


def test_a_policy_holds_on_its_sae_in_another_librarys_format(world, tmp_path, monkeypatch, capsys):
    said = {}
    for to in ("demur", "saelens"):
        assert run(monkeypatch, capsys, "convert", str(world / "sae"), "--to", to, "--out", str(tmp_path / to))[0] == 0
        words = ["evaluate", "--model", world / "model", "--sae", tmp_path / to, "--run", tmp_path / f"run-{to}"]
        words += ["--policy", world / "good.toml", "--prompts", world / "prompts.jsonl", "--max-new-tokens", 4]
        assert run(monkeypatch, capsys, *words)[0] == 0
        said[to] = [(r["reply"], r["edited"]) for r in read_jsonl(tmp_path / f"run-{to}" / "transcripts.jsonl")]
    assert said["demur"] == said["saelens"]
    assert any(edited for _, edited in said["demur"])


def test_json_is_one_object_on_stdout_and_nothing_else(world, tmp_path, monkeypatch, capsys):
    words = [w.format(w=world, tmp=tmp_path) for w in [*EVALUATE, *GOOD, "--policy", "none", *ROWS, "--json"]]
    code, out, _ = run(monkeypatch, capsys, *words, "--max-new-tokens", "3")
    assert code == 0
    body = json.loads(out)
    assert {r["policy"] for r in body["results"]} == {"steered", "none"}
    first = body["results"][0]
    assert {"policy", "set", "label", "kind", "n", "refused", "outcomes"} <= set(first)
    assert {"rate", "low", "high"} <= set(first["refused"])
    rows = list(read_jsonl(Path(body["run"]) / "transcripts.jsonl"))
    assert all({"id", "policy", "set", "label", "prompt", "reply", "fired"} <= set(row) for row in rows)


def test_wrong_usage_is_exit_2(world, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "evaluate", "--polcy", "none")
    assert code == 2
    assert "--polcy" in err
    code, _, err = run(monkeypatch, capsys, "calibrate", "--features", "f.json", "--budget", "2")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "`budget`: input should be less than 1" in err and "demur calibrate --help" in err
