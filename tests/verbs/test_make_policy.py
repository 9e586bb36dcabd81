"""`demur make-policy` on an architecture that nothing else here was made for: Qwen2, small, with a refusal planted in it.

Block 0 writes the share of `!` in what was said along the direction REFUSAL; the head says `NO` where there is much of it,
`YES` otherwise, and then ends. A harmful request has one `!` after each word, or eight; the plain model refuses the loud.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
import transformers
from tokenizers import AddedToken

from demur.cli import main
from demur.errors import SettingsError
from demur.models.load import LanguageModel, wrap
from demur.records import Policy, PromptSet
from demur.verbs.make_policy import default_text
from tests import tiny
from tests.verbs.test_another_model import CONSTANT, HARM, NO, REFUSAL, SAID, YES, write, write_splits, write_talk


def planted() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (NO, YES)])
    config = transformers.Qwen2Config(**{**tiny.SMALL, "hidden_size": 64, "vocab_size": len(tokenizer)})
    config.eos_token_id, config.tie_word_embeddings = tokenizer.eos_token_id, False
    model = transformers.AutoModelForCausalLM.from_config(config)
    token = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for block in model.model.layers:
            attention = block.self_attn
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, block.mlp.down_proj):
                for weight in part.parameters():
                    weight.zero_()
        words = model.model.embed_tokens.weight
        words.normal_(0, 0.12)
        words[:, [REFUSAL, HARM, SAID]] = 0
        words[:, CONSTANT] = 1
        words[token("!"), HARM] = 1
        words[[token(NO), token(YES)], SAID] = 3
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, HARM] = 1
        attention.o_proj.weight[REFUSAL, 0] = 0.3
        head = model.lm_head.weight
        head.zero_()
        head[token(NO), REFUSAL], head[token(YES), CONSTANT], head[tokenizer.eos_token_id, SAID] = 12, 5, 20
    return wrap(model, tokenizer, "planted-qwen")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("qwen")
    lm = planted()
    lm.model.save_pretrained(home / "model")
    lm.tokenizer.save_pretrained(home / "model")
    write_splits(home, {"train": 50, "validation": 40, "test": 20})
    write_talk(home / "talk.jsonl", 250)
    return home


SMALL = {
    "train": {"d_sae": 96, "k": 3, "batch": 256, "buffer": 8192, "dead_after": 20000, "lr": 5e-3},
    "find": {"openings": [NO], "rehearsed": 24, "replies": 16, "scored": 4, "tried": 8, "sensors": 8},
    "calibrate": {"tried": 8, "tried_benign": 4, "confirmed": 16, "trials": 10},
}


def make(home: Path, monkeypatch, capsys, *more: str, budget: str = "0.05") -> tuple[int, str, str]:
    """Runs the command: some settings of its stages from a config, some as flags."""
    (home / "small.toml").write_text(tomli_w.dumps({"make-policy": SMALL}))
    words = [
        "make-policy",
        "-c",
        home / "small.toml",
        home / "model",
        "--text",
        home / "talk.jsonl",
        "--run",
        "runs/qwen",
    ]
    for name in ("prompts", "validation", "test"):
        words += [f"--{name}", home / f"{name.replace('prompts', 'train')}.jsonl"]
    words += ["--budget", budget, "--calibrate.max-new-tokens", 6, "--evaluate.max-new-tokens", 6]
    monkeypatch.setattr(sys, "argv", ["demur", *map(str, words), *more])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_a_model_of_another_family_gets_a_policy_and_a_report_in_one_command(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = make(home, monkeypatch, capsys, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert [(s["stage"], s["done"]) for s in plan] == [
        ("train", False), ("find", False), ("calibrate", False), ("evaluate", False),
    ]  # fmt: skip
    assert not (tmp_path / "runs").exists()

    code, out, err = make(home, monkeypatch, capsys, "--json")
    assert code == 0, err
    made = json.loads(out)
    policy = Policy.load(made["policy"])
    assert Path(made["report"]).is_file() and set(policy.levels) == {"relaxed", "standard", "strict"}
    assert policy.interventions[0].site == "1.resid_post"
    refused = {(r["policy"], r["label"]): r["refused"]["rate"] for r in made["results"]}
    assert 0.2 < refused["none", "harmful"] < 0.8 and refused["none", "benign"] == 0
    assert refused["gated", "harmful"] >= 0.9 and refused["gated", "benign"] <= 0.1
    assert refused["random", "harmful"] < 0.8

    # What is there is not made again; what is missing is.
    features, transcripts = Path("runs/qwen/find/features.json"), Path("runs/qwen/evaluate/transcripts.jsonl")
    before = features.stat().st_mtime_ns, transcripts.read_bytes()
    Path(made["report"]).unlink()
    code, out, err = make(home, monkeypatch, capsys, "--json")
    assert code == 0 and json.loads(out)["results"] == made["results"], err
    assert err.count("there already") == 3
    assert Path(made["report"]).is_file()
    assert before == (features.stat().st_mtime_ns, transcripts.read_bytes())
    code, _, err = make(home, monkeypatch, capsys, budget="0.1")
    assert code == 1 and "other settings (calibrate)" in err


def test_a_model_without_a_template_is_given_text_or_an_error(home, tmp_path):
    lm = planted()
    lm.tokenizer.chat_template = None
    bare = replace(lm, name="bare")
    given = PromptSet.load(home / "train.jsonl")
    with pytest.raises(SettingsError, match="--text"):
        default_text(bare, given, [], tmp_path, 0)
    write(tmp_path / "text.jsonl", [{"text": "tea and sky"}, {"text": "old boat"}])
    found = default_text(bare, given, [tmp_path / "text.jsonl"], tmp_path, 0)
    assert [s.tokens for s in found["text"]] == [19] and "sampled" not in found


def test_the_text_of_a_model_with_a_template_is_refusals_and_what_it_says(home, tmp_path):
    lm = planted()
    given = PromptSet.load(home / "train.jsonl")
    found = default_text(lm, given, [], tmp_path, 0)
    assert [s.refused for s in found["text"]] == [True]
    from demur.activations.sample import sample
    from demur.data.corpus import take

    assert sum(map(len, take(lm.tokenizer, found["text"][0], 256, 0))) >= found["text"][0].tokens - 1
    settings = found["sampled"].model_copy(update={"max_new_tokens": 2})
    assert sum(map(len, sample(lm, settings, 256, 0))) >= settings.tokens - 1, "the prompts last"


def test_what_cannot_become_a_policy_is_said_before_anything(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for flags, said in (
        (("--find.method", "paper"), "give effect or contrast"),
        (("--train.site", "0.resid_post", "--train.site", "1.resid_post"), "give one with --site"),
    ):
        code, _, err = make(home, monkeypatch, capsys, *flags)
        assert code == 1 and said in err and not (tmp_path / "runs").exists()
    code, out, _ = make(home, monkeypatch, capsys, "--train.site", "0.resid_post", "--dry-run")
    assert code == 0 and "at 0.resid_post" in out


def test_a_budget_that_is_no_share_is_said_before_anything(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = make(home, monkeypatch, capsys, budget="2")
    assert code == 1 and "--budget 0.02" in err and not (tmp_path / "runs").exists()
