"""Training from text: killed anywhere and resumed, it is the training that was not; what is wrong is said in a sentence."""

import copy
import errno
import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from pydantic import ValidationError

from demur.activations import shards
from demur.activations import stream as streams
from demur.activations.shards import shards_of
from demur.data.corpus import Sequences
from demur.errors import FileError, SAEError, SettingsError, TrainingError
from demur.files import replacing
from demur.models.load import wrap
from demur.sae.checkpoint import CHECKPOINT
from demur.sae.quality import measure
from demur.sae.sae import SAE
from demur.sae.settings import SAESettings
from demur.sae.train import TEXT, gather_text, train
from demur.sae.trainer import Trainer
from demur.verbs.train import train_verb
from tests import tiny

SETTINGS = SAESettings(
    site="1.resid_post", d_sae=48, k=6, batch=64, buffer=512, dead_after=500, checkpoint_every=0, seed=3
)


def text(rows: int = 80) -> Sequences:
    rng = random.Random(0)
    return Sequences.of([[rng.randint(4, 250) for _ in range(rng.randint(5, 40))] for _ in range(rows)])


def lm():
    return tiny.lm("llama", torch.float32)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def leaving(self: replacing, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
    if kind is not Killed:
        TIDY(self, kind, error, *rest)


TIDY = replacing.__exit__


def same(a: SAE, b: SAE) -> bool:
    return all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_thirty_kills_anywhere_leave_the_training_that_was_not_killed(rule, tmp_path, monkeypatch):
    """A kill comes before, in or after a step, the writing of a checkpoint or shard, or between a shard and its entry, and
    leaves half a file; no activation is made twice once it is kept."""
    settings = SETTINGS.model_copy(update={"rule": rule, "site": ("0.resid_post", "1.resid_post"), "batch": 32})
    monkeypatch.setattr("demur.activations.stream.TOKENS_PER_PASS", 128)
    monkeypatch.setattr("demur.activations.shards.SHARD_BYTES", 2**17)
    (tmp_path / "whole").mkdir()
    whole = train(lm(), text(), settings, tmp_path / "whole")
    rng, made, left = random.Random(rule), [], 30
    settings = settings.model_copy(update={"cache": str(tmp_path / "cache")})
    read_rows, until = streams.read_rows, 0

    def tick(*_: object) -> None:
        nonlocal until
        until -= 1
        if until == 0 and left > 0:
            raise Killed

    def counted(lm, sites, rows):
        tick()
        found = read_rows(lm, sites, rows)
        made.append(len(found))
        return found

    monkeypatch.setattr("demur.activations.stream.read_rows", counted)
    for module in ("demur.sae.checkpoint", "demur.activations.shards"):
        write = sys.modules[module].save_file

        def cut(tensors, path, write=write):
            write(tensors, path)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            tick()
            path.write_bytes(content)
            tick()

        monkeypatch.setattr(f"{module}.save_file", cut)
    note = shards.write_json
    monkeypatch.setattr("demur.activations.shards.write_json", lambda *a: (tick(), note(*a), tick()))
    # What is killed tidies nothing up.
    monkeypatch.setattr("demur.files.replacing.__exit__", leaving)
    (tmp_path / "cut").mkdir()
    while True:
        until = rng.randint(1, 9)
        try:
            resumed = train(lm(), text(), settings, tmp_path / "cut", after_step=tick)
            break
        except Killed:
            left -= 1
    assert left == 0
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))
    entries = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("0*.json")]
    groups = [group for entry in entries for group in entry["groups"]]
    assert sorted(groups) == list(range(len(groups)))  # each once
    assert sum(sum(entry["tokens"]) for entry in entries) == int((text().lengths() - 1).sum())
    # From the shards alone, the model not run at all, it is the same again.
    made.clear()
    (tmp_path / "again").mkdir()
    until = 0
    again = train(lm(), text(), settings, tmp_path / "again")
    assert made == []
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))


def test_several_sites_are_trained_in_one_pass_as_each_alone(tmp_path, monkeypatch):
    passes = []
    read_rows = streams.read_rows
    monkeypatch.setattr("demur.activations.stream.read_rows", lambda *a: (passes.append(len(a[1])), read_rows(*a))[1])
    for name in ("both", "alone"):
        (tmp_path / name).mkdir()
    both = train(
        lm(), text(), SETTINGS.model_copy(update={"site": ("1.resid_post", "2.resid_post")}), tmp_path / "both"
    )
    assert set(passes) == {2}
    assert [sae.config.site for sae in both] == ["1.resid_post", "2.resid_post"]
    alone = train(lm(), text(), SETTINGS, tmp_path / "alone")[0]
    assert same(alone, both[0])


def test_a_truncated_checkpoint_is_one_clear_error(tmp_path):
    train(lm(), text(), SETTINGS, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileError, match="delete it to train from the beginning"):
        train(lm(), text(), SETTINGS, tmp_path)


def test_a_checkpoint_of_another_width_is_one_clear_error(tmp_path):
    train(lm(), text(), SETTINGS, tmp_path)
    with pytest.raises(SAEError, match=r"W_enc in the checkpoint is \(48, 32\)"):
        train(lm(), text(), SETTINGS.model_copy(update={"d_sae": 64}), tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_stop_it_with_the_site(bad, tmp_path, monkeypatch):
    read_rows = streams.read_rows

    def broken(*a):
        found = read_rows(*a)
        found[3, 0, 5] = bad
        return found

    monkeypatch.setattr("demur.activations.stream.read_rows", broken)
    monkeypatch.setattr("demur.activations.shards.SHARD_BYTES", 1)  # each group a shard of its own
    (tmp_path / "run").mkdir()
    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache")})
    with pytest.raises(TrainingError, match=r"1 of \d+ activations at 1.resid_post are not finite .*--dtype float32"):
        train(lm(), text(), settings, tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["index.json"]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("module", ["demur.sae.checkpoint", "demur.activations.shards"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(module, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache")})
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.save_file", full)
        with pytest.raises(FileError, match="no room on the disk for"):
            train(lm(), text(), settings, tmp_path / "run")
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    # Nothing but what was whole before: shards, each with its entry, where it was the checkpoint that found no room.
    whole = {f"{name[:6]}.{end}" for name in left for end in ("json", "safetensors") if name[0] == "0"}
    assert left == {"index.json"} | (whole if "checkpoint" in module else set())
    train(lm(), text(), settings, tmp_path / "run")


def test_a_shard_that_is_truncated_or_changed_is_one_clear_error(tmp_path):
    (tmp_path / "run").mkdir()
    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache")})
    whole = train(lm(), text(), settings, tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).unlink()
    shard = next((tmp_path / "cache").glob("0*.safetensors"))
    content = shard.read_bytes()
    for wrong in (content[:-100], content[:-1] + bytes([content[-1] ^ 1])):
        shard.write_bytes(wrong)
        with pytest.raises(FileError, match=f"{shard.name} is not as it was written .*delete {shard.stem}.json"):
            train(lm(), text(), settings, tmp_path / "run")
    for path in (tmp_path / "cache").glob(f"{shard.stem}*"):
        path.unlink()
    assert same(train(lm(), text(), settings, tmp_path / "run")[0], whole[0])


@pytest.mark.parametrize(
    ("what", "change"),
    [("sites", {"site": ("2.resid_post",)}), ("order", {"seed": 4}), ("precision", {})],
)
def test_a_cache_of_something_else_is_one_clear_error(what, change, tmp_path):
    (tmp_path / "run").mkdir()
    settings = SETTINGS.model_copy(update={"cache": str(tmp_path / "cache")})
    train(lm(), text(), settings, tmp_path / "run")
    other = lm()
    if what == "precision":
        other = wrap(copy.deepcopy(other.model).to(torch.bfloat16), other.tokenizer, other.name)
    with pytest.raises(SettingsError, match=f"activations of another {what}"):
        train(other, text(), settings.model_copy(update=change), tmp_path / "run")


def test_shards_of_several_processes_are_each_verified_once(tmp_path, monkeypatch):
    groups, parts = [[i] for i in range(40)], torch.randn(40, 3, 1, 32)
    writers = [shards_of(tmp_path, lm(), ("1.resid_post",), text(40), groups) for _ in range(4)]
    for i, part in enumerate(parts):
        writers[i % 4].add(i, part)
    for writer in writers:
        writer.flush()
    monkeypatch.setattr("demur.activations.shards.OPEN", 2)
    hashed = []
    file_hash = shards.file_hash
    monkeypatch.setattr("demur.activations.shards.file_hash", lambda path: (hashed.append(path), file_hash(path))[1])
    kept = shards_of(tmp_path, lm(), ("1.resid_post",), text(40), groups)
    assert all(torch.equal(kept.get(i), part) for i, part in enumerate(parts))
    assert len(hashed) == len(set(hashed)) == 4


@pytest.mark.parametrize("batch", [300, 512])
def test_a_batch_of_more_than_half_the_buffer_learns_from_all_of_the_text(batch, tmp_path):
    seen = []
    settings = SETTINGS.model_copy(update={"batch": batch})
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda self, x: (seen.append(len(x)), step(self, x))[1])
        train(lm(), text(), settings, tmp_path)
    assert sum(seen) == int((text().lengths() - 1).sum())
    with pytest.raises(SettingsError, match=r"a batch of 513 .* buffer of 512.*--buffer"):
        train(lm(), text(), settings.model_copy(update={"batch": 513}), tmp_path)


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_a_training_that_diverges_ends_with_a_message_and_saves_nothing(rule, tmp_path):
    with pytest.raises(TrainingError, match=r"diverged by step \d+.*lower --lr"):
        train(lm(), text(), SETTINGS.model_copy(update={"rule": rule, "lr": 1e38}), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()  # it was the first step


def test_a_model_in_float64_is_trained_on_and_measured(tmp_path):
    double = tiny.lm("llama", torch.float64)
    sae = train(double, text(), SETTINGS, tmp_path)[0]
    assert sae.W_enc.dtype == torch.float32
    assert measure(double, sae, text(8)).fvu < 1


def test_a_site_is_given_once():
    with pytest.raises(ValidationError, match="a site may be given once"):
        SAESettings(site=("1.resid_post", "1.resid_post"))


def source(tmp_path, words: int = 4000) -> SAESettings:
    rng = random.Random(1)
    lines = ['{"text": "' + " ".join(rng.choices(["sun", "rain", "wind"], k=60)) + '"}' for _ in range(words // 60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    given = {"text": [{"path": str(tmp_path / "text.jsonl"), "tokens": 3000}], "length": 64}
    return SAESettings.model_validate(SETTINGS.model_dump() | given)


def test_text_of_another_tokenizer_is_one_clear_error(tmp_path):
    settings = source(tmp_path)
    (tmp_path / "run").mkdir()
    gather_text(lm(), settings, tmp_path / "run")
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    other.add_tokens(["sunrain"])
    model = wrap(lm().model, other, "other")
    with pytest.raises(FileError, match=f"{TEXT} was made with another tokenizer than that of other; delete"):
        gather_text(model, settings, tmp_path / "run")
    # A tokenizer with more words than the model has embeddings.
    config = tiny.ARCHITECTURES["llama"]()
    config.vocab_size = 100
    small = wrap(transformers.AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "small")
    (tmp_path / "b").mkdir()
    with pytest.raises(SettingsError, match="has 100 embeddings"):
        gather_text(small, settings, tmp_path / "b")


def test_the_verb_writes_a_folder_for_each_site_and_fine_tunes(tmp_path, capsys):
    lm().model.save_pretrained(tmp_path / "model")
    lm().tokenizer.save_pretrained(tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "site": ["0.resid_post", "2.resid_post"], "rule": "batchtopk"}
    settings = SAESettings.model_validate(source(tmp_path).model_dump() | given | {"finetune_tokens": 500})
    train_verb(settings=settings, run=tmp_path / "run", json=True)
    said = json.loads(capsys.readouterr().out)
    for card, layer in zip(said["saes"], (0, 2), strict=True):
        sae = SAE.load(tmp_path / "run" / f"sae-{layer}")
        assert (sae.hash, sae.config.site, sae.config.rule) == (card["sae_hash"], f"{layer}.resid_post", "batchtopk")
        assert card["quality"]["fvu"] < 1
    with pytest.raises(SettingsError, match="other settings"):
        train_verb(settings=settings.model_copy(update={"k": 5}), run=tmp_path / "run")


@pytest.mark.slow
def test_a_process_killed_with_sigkill_resumes_to_the_same_sae(tmp_path):
    """The same, from outside: `demur train` on a model folder, killed without warning."""
    lm().model.save_pretrained(tmp_path / "model")
    lm().tokenizer.save_pretrained(tmp_path / "model")
    rng = random.Random(1)
    lines = ['{"text": "' + " ".join(rng.choices(["sun", "rain", "wind", "snow"], k=60)) + '"}' for _ in range(500)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.toml").write_text(
        f'[train]\nmodel = "{tmp_path / "model"}"\nsite = "1.resid_post"\nd_sae = 64\nk = 4\nbatch = 64\nlength = 64\n'
        f'buffer = 1024\ncheckpoint_every = 0\ntext = [{{ path = "{tmp_path / "text.jsonl"}", tokens = 60000 }}]\n'
    )

    def command(run: str) -> list[str]:
        return [sys.executable, "-m", "demur", "train", "-c", str(tmp_path / "c.toml"), "--run", str(tmp_path / run)]

    subprocess.run(command("a"), check=True, capture_output=True)
    process = subprocess.Popen(command("b"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "b" / CHECKPOINT).is_file() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(random.random())
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command("b"), check=True, capture_output=True)
    assert SAE.load(tmp_path / "a" / "sae").hash == SAE.load(tmp_path / "b" / "sae").hash
