"""Training: resumption to the same bits, folding of the input scale, a step's gradient against a dense one."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from demur.activations.stream import ActivationStream, read_rows
from demur.data.corpus import Sequences, batches
from demur.errors import FileError
from demur.sae.sae import SAE
from demur.sae.train import CHECKPOINT, SAESettings, Trainer, geometric_median, train
from tests import tiny

SETTINGS = SAESettings(
    site="1.resid_post", d_sae=48, k=6, batch=64, buffer=512, dead_after=500, checkpoint_every=0, seed=3
)


def text(rows: int = 80) -> Sequences:
    rng = random.Random(0)
    return Sequences.of([[rng.randint(4, 250) for _ in range(rng.randint(5, 40))] for _ in range(rows)])


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("kill_at", [1, 5, 11, 17])
def test_training_killed_and_resumed_is_training_uninterrupted(tmp_path, kill_at):
    lm = tiny.lm("llama", torch.float32)
    whole = train(lm, text(), SETTINGS, tmp_path / "whole")

    def kill(trainer: Trainer) -> None:
        if trainer.step_number == kill_at:
            raise Killed

    (tmp_path / "cut").mkdir()
    with pytest.raises(Killed):
        train(lm, text(), SETTINGS, tmp_path / "cut", after_step=kill)
    resumed = train(lm, text(), SETTINGS, tmp_path / "cut")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    (tmp_path / "whole").mkdir()


def test_a_truncated_checkpoint_is_one_clear_error(tmp_path):
    lm = tiny.lm("llama", torch.float32)
    train(lm, text(), SETTINGS, tmp_path / "whole")
    path = tmp_path / "whole" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileError, match="delete it to train from the beginning"):
        train(lm, text(), SETTINGS, tmp_path / "whole")


@pytest.mark.slow
def test_a_process_killed_with_sigkill_resumes_to_the_same_sae(tmp_path):
    """The same, from outside: `demur train` on a model folder, killed without warning."""
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
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


def test_folding_the_scale_changes_units_and_nothing_else():
    x = 40 * torch.randn(300, 32, generator=torch.Generator().manual_seed(0)) + 3
    trainer = Trainer(32, SETTINGS, steps=10)
    trainer.start(x)
    for _ in range(5):
        trainer.step(x[:64])
    lm = tiny.lm("llama", torch.float32)
    sae = trainer.sae(lm)
    w, s = trainer.weights, trainer.counters["scale"]
    pre = (x * s - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    values, indices = pre.topk(SETTINGS.k, dim=1)
    scaled = torch.zeros_like(pre).scatter(1, indices, values.relu()) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(sae.decode(sae.encode(x)), (scaled / s).detach(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def test_a_step_has_the_gradient_of_the_dense_formula():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(32, SETTINGS, steps=10)
    trainer.start(x)
    dense = {name: weight.detach().clone().requires_grad_() for name, weight in trainer.weights.items()}
    z = x * trainer.counters["scale"]
    pre = (z - dense["b_dec"]) @ dense["W_enc"] + dense["b_enc"]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(SETTINGS.k, dim=1).indices, 1.0)
    error = z - (pre.relu() * kept) @ dense["W_dec"] - dense["b_dec"]
    (error.pow(2).sum() / (z - z.mean(0)).pow(2).sum()).backward()
    trainer.step(x)
    for name in ("W_enc", "b_enc", "b_dec"):
        torch.testing.assert_close(trainer.weights[name].grad, dense[name].grad, atol=1e-6, rtol=1e-4)


def test_dead_features_come_back():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    x = torch.zeros(20_000, 32)
    for i, picked in enumerate(torch.randint(0, 48, (20_000, 3), generator=generator)):
        x[i] = directions[picked].sum(0)

    def dead(weight: float) -> float:
        trainer = Trainer(32, SETTINGS.model_copy(update={"dead_loss": weight, "lr": 5e-3}), steps=600)
        trainer.start(x)
        with torch.no_grad():
            trainer.weights["b_enc"][:24] = -3  # half of the features start out of reach
        for i in range(600):
            figures = trainer.step(x[i % 300 * 64 :][:64])
        return figures["dead"]

    assert dead(1 / 32) < dead(0.0) / 2


def test_geometric_median_is_not_moved_by_an_outlier():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    with_outlier = torch.cat([x, torch.full((1, 4), 1e4)])
    assert (geometric_median(with_outlier) - geometric_median(x)).norm() < 0.05 < with_outlier.mean(0).norm()


def test_the_stream_gives_every_token_but_the_first_of_each_row_once():
    lm, rows = tiny.lm("llama", torch.float32), text(30)
    stream = ActivationStream(lm, "1.resid_post", rows, capacity=200, seed=0)
    parts = []
    while stream.refill():
        parts += list(stream.batches(32))
    found = torch.cat(parts)
    wanted = torch.cat([read_rows(lm, "1.resid_post", [rows[i]]) for i in range(len(rows))])
    assert len(found) == len(wanted)
    torch.testing.assert_close(found.sort(dim=0).values, wanted.sort(dim=0).values, atol=1e-3, rtol=1e-4)


def test_groups_hold_every_sequence_once_and_keep_to_their_size():
    lengths = np.array([random.Random(i).randint(2, 200) for i in range(700)])
    groups = batches(lengths, 1000, seed=0)
    assert sorted(i for group in groups for i in group) == list(range(700))
    assert all(len(group) * max(lengths[group]) <= 1000 for group in groups)
