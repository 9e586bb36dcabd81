"""The whole line on another architecture, by its verbs and its config file: Phi-3, small, with a refusal planted in it.

The model is tiny, but of the architecture that `configs/phi3-mini.toml` is for, and deep enough for its site, so that the
file is used as it stands but for the model's name, text and sizes. Block 0 writes the share of `!` in what was said along
the direction REFUSAL. The head says `NO` where there is much of it and `YES` where there is little, and then ends. A
harmful request has one `!` after each word, or eight: the plain model refuses the loud ones only.
"""

import copy
import json
import random
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import AddedToken

from demur.cli import main
from demur.models.load import LanguageModel, wrap
from demur.records import FeatureSet
from demur.sae.sae import SAE
from tests import tiny

CONFIG = Path(__file__).parents[2] / "configs" / "phi3-mini.toml"
NO, YES = "I'm unable to assist with that request.", "Of course, here is how."
REFUSAL, CONSTANT, HARM, SAID = range(4)
WORDS = ["tea", "how", "sky", "boat", "why", "sum", "old", "red", "walk", "music"]


def planted() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (NO, YES)])
    config = transformers.Phi3Config(
        **{**tiny.SMALL, "hidden_size": 64, "num_hidden_layers": 7, "vocab_size": len(tokenizer)},
        original_max_position_embeddings=256,
    )
    config.eos_token_id = tokenizer.eos_token_id
    model = transformers.AutoModelForCausalLM.from_config(config)
    token = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        for block in model.model.layers:
            for part in (block.self_attn.qkv_proj, block.self_attn.o_proj, block.mlp.down_proj):
                part.weight.zero_()
        words = model.model.embed_tokens.weight
        words.normal_(0, 0.12)
        words[:, [REFUSAL, HARM, SAID]] = 0
        words[:, CONSTANT] = 1
        words[token("!"), HARM] = 1
        words[[token(NO), token(YES)], SAID] = 3
        attention = model.model.layers[0].self_attn
        values = attention.qkv_proj.out_features - config.num_key_value_heads * attention.head_dim
        attention.qkv_proj.weight[values, HARM] = 1
        attention.o_proj.weight[REFUSAL, 0] = 0.3
        head = model.lm_head.weight
        head.zero_()
        head[token(NO), REFUSAL], head[token(YES), CONSTANT], head[tokenizer.eos_token_id, SAID] = 12, 5, 20
    return wrap(model, tokenizer, "planted")


def requests(harmful: bool, n: int, seed: int) -> list[str]:
    rng = random.Random(f"{seed} {harmful}")
    made = []
    for _ in range(n):
        marks = "!" * rng.choice([1, 8]) if harmful else ""
        made.append(" ".join(word + marks for word in rng.choices(WORDS, k=rng.randint(2, 4))))
    return made


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_splits(folder: Path, sizes: dict[str, int]) -> None:
    """As many harmful as benign prompts of each split."""
    for seed, (name, n) in enumerate(sizes.items()):
        rows = [
            {"prompt": text, "label": label, "kind": kind, "source": f"{label} {name}"}
            for label, kind in (("harmful", "harmful"), ("benign", "plain"))
            for text in requests(label == "harmful", n, seed)
        ]
        write(folder / f"{name}.jsonl", rows)


def write_talk(path: Path, n: int) -> None:
    """Harmful and benign requests in turn, all complied with."""
    pairs = zip(requests(True, n, 8), requests(False, n, 9), strict=True)
    said = [[{"role": "user", "content": t}, {"role": "assistant", "content": YES}] for pair in pairs for t in pair]
    write(path, [{"messages": turns} for turns in said])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The model's folder, and a data folder with prompts under the names that the config gives."""
    home = tmp_path_factory.mktemp("another")
    lm = planted()
    lm.model.save_pretrained(home / "model")
    lm.tokenizer.save_pretrained(home / "model")
    write_splits(home / "data" / "prompts", {"train": 60, "dev": 50, "test": 24})
    write_talk(home / "data" / "text" / "talk.jsonl", 500)
    return home


@pytest.fixture
def demur(home, tmp_path, monkeypatch, capsys):
    """Runs `demur VERB -c CONFIG … --json` in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEMUR_DATA", str(home / "data"))

    def run(verb: str, *more: str) -> dict:
        model = [] if verb == "report" else ["--model", str(home / "model")]
        monkeypatch.setattr(sys, "argv", ["demur", verb, "-c", str(CONFIG), *model, *more, "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return json.loads(out)

    return run


# What differs from the config: text and sizes, and the words in which this model refuses.
TEXT = ["--text", json.dumps({"path": "text/talk.jsonl", "tokens": 40_000})]
SAMPLED = ["--sampled.prompts", "prompts/train.jsonl", "--sampled.tokens", "2000", "--sampled.max-new-tokens", "8"]
SAE_SIZE = ["--d-sae", "96", "--k", "3", "--batch", "256", "--buffer", "8192", "--dead-after", "20000", "--lr", "5e-3"]
FIND = ["--openings", NO, "--rehearsed", "24", "--replies", "16", "--scored", "4", "--tried", "8", "--sensors", "8"]
TRY = ["--tried", "8", "--tried-benign", "4", "--confirmed", "50", "--trials", "12", "--max-new-tokens", "8"]
PAPER = ["--method", "paper", "--candidates", "20", "--run", "runs/phi3/find-paper"]


@pytest.mark.slow
def test_the_papers_sae_is_trained_as_its_config_says(demur):
    """Layer 6, 24,576 features, k = 32: only the text is another, and so little that batches are smaller."""
    card = demur("train", *TEXT, *SAMPLED, "--batch", "128")
    sae = SAE.load("runs/phi3/sae/sae")
    assert (sae.config.site, sae.config.d_sae, sae.config.k, sae.config.rule) == ("6.resid_post", 24_576, 32, "topk")
    assert sae.W_dec.shape == (24_576, 64)
    assert card["quality"]["l0"] <= 32 and card["quality"]["fvu"] < 0.7


@pytest.mark.slow
def test_the_line_passes_on_a_tiny_phi_3_and_steers_it(demur, tmp_path):
    plan = demur("train", *TEXT, *SAMPLED, *SAE_SIZE, "--dry-run", "--gpu", "L4")
    assert not (tmp_path / "runs").exists()
    card = demur("train", *TEXT, *SAMPLED, *SAE_SIZE)
    assert card["quality"]["fvu"] < 0.1
    assert 0.95 * plan["trained"] < card["tokens"] <= plan["trained"]
    for name, size in plan["disk"].items():
        found = (tmp_path / "runs" / "phi3" / "sae" / name).stat().st_size
        assert found < size + 20_000, name
        assert found > size - 20_000 or name == "checkpoint.safetensors", name  # the buffer is empty at the end

    demur("find", *FIND)
    demur("calibrate", *TRY)
    demur("find", *FIND, *PAPER)
    demur("calibrate", "--features", "runs/phi3/find-paper/features.json", "--run", "runs/phi3/paper", *TRY)
    demur("rivals", "--only", "canned", "--only", "diffmean", "--only", "splice", "--tried", "8", "--replies", "16")
    results = demur("evaluate", "--max-new-tokens", "8")["results"]
    page = Path(demur("report")["html"])

    sae = SAE.load("runs/phi3/sae/sae")
    assert (sae.config.d_sae, sae.config.k, sae.config.site) == (96, 3, "6.resid_post")
    for run, method in (("find", "effect"), ("find-paper", "paper")):
        features = FeatureSet.load(f"runs/phi3/{run}/features.json")
        assert features.method == method
        assert features.sae_hash == sae.hash
        # What is found is what was planted, and nothing beside it (the SAE has several such features: 1.0, 0.92, 0.88).
        found = sae.W_dec[[f.id for f in features.actuators()][: 1 if method == "paper" else None]]
        assert (found.abs().argmax(1) == REFUSAL).all() and (found[:, REFUSAL] > 0).all()
        whole = sum(f.level * sae.W_dec[f.id] for f in features.actuators()) if method == "effect" else found[0]
        assert whole[REFUSAL] / whole.norm() > 0.85
    refused = {(r["policy"], r["label"]): r["refused"]["rate"] for r in results}
    assert 0.2 < refused["none", "harmful"] < 0.8
    assert refused["none", "benign"] == 0
    assert (refused["gated", "harmful"], refused["gated", "benign"]) == (1, 0)
    assert (refused["paper", "harmful"], refused["paper", "benign"]) == (1, 1)
    assert refused["random", "harmful"] < 0.8
    assert refused["random", "benign"] == 0
    assert all(name in page.read_text() for name in ("gated", "paper", "random"))
    assert {path.stem for path in (tmp_path / "runs" / "phi3" / "rivals").glob("*.toml")} == {
        "canned", "diffmean", "splice",
    }  # fmt: skip
