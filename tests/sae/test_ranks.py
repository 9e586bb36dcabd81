"""Several processes: the SAE that one makes of the same batches; one that is killed ends the run, which resumes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demur.errors import SettingsError
from demur.sae.checkpoint import CHECKPOINT
from demur.sae.ranks import ALONE, Ranks, joined
from demur.sae.sae import SAE
from demur.sae.settings import SAESettings
from demur.sae.trainer import Trainer
from tests import tiny

RULES = ["topk", "batchtopk", "jumprelu", "relu"]
STEPS, BATCH = 50, 64
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]


def learn(ranks: Ranks) -> dict[str, torch.Tensor]:
    """50 steps for each rule on this process's share of the same batches; the last batch is one process's alone."""
    x = torch.randn(STEPS * BATCH, 32, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 33))
    found = {}
    for rule in RULES:
        settings = SAESettings(d_sae=48, k=6, batch=BATCH, dead_after=500, rule=rule)
        trainer = Trainer(32, settings, STEPS, ranks=ranks)
        trainer.start(x[:512][ranks.rank :: ranks.size])
        for step in range(STEPS):
            batch = x[step * BATCH :][:BATCH]
            last = step == STEPS - 1 and ranks.size > 1
            share = batch if last and ranks.first else batch[:0] if last else batch[ranks.rank :: ranks.size]
            figures = trainer.step(share)
        found |= {f"{rule}.{name}": weight for name, weight in trainer.weights.items()}
        found |= {f"{rule}.{name}": value.float() for name, value in figures._asdict().items()}
        found[f"{rule}.silent"] = trainer.counters["silent"]
        found |= {f"{rule}.{name}": value for name, value in trainer.rule.counters.items()}
    return found


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}:{root}"}


def test_two_processes_learn_what_one_does_from_the_same_batches(tmp_path):
    subprocess.run([*TORCHRUN, __file__, str(tmp_path)], check=True, capture_output=True, env=environment())
    both, alone = load_file(tmp_path / "found.safetensors"), learn(ALONE)
    assert set(both) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_more_processes_than_gpus_are_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"2 processes .* 1 GPUs.*--device cpu"), joined():
        pass


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_message_and_it_resumes(tmp_path):
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    rng = random.Random(1)
    lines = ['{"text": "' + " ".join(rng.choices(["sun", "rain", "wind", "snow"], k=60)) + '"}' for _ in range(300)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.toml").write_text(
        f'[train]\nmodel = "{tmp_path / "model"}"\nsite = "1.resid_post"\nd_sae = 64\nk = 4\nbatch = 32\nlength = 64\n'
        f'buffer = 1024\ncheckpoint_every = 0.2\ntext = [{{ path = "{tmp_path / "text.jsonl"}", tokens = 36000 }}]\n'
    )

    def command(run: str) -> list[str]:
        return [*TORCHRUN, "-m", "--", "demur", "train", "-c", str(tmp_path / "c.toml"), "--run", str(tmp_path / run)]

    subprocess.run(command("a"), check=True, capture_output=True, env=environment())
    process = subprocess.Popen(
        command("b"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    while not (tmp_path / "b" / CHECKPOINT).is_file() and process.poll() is None:
        time.sleep(0.02)
    workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    os.kill(int(workers.stdout.split()[1]), signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode != 0
    assert "demur: another process of this training ended" in said or "Signal 9 (SIGKILL)" in said
    assert not (tmp_path / "b" / "sae").exists()
    again = subprocess.run(command("b"), check=True, capture_output=True, text=True, env=environment())
    assert "run:" in again.stderr
    assert SAE.load(tmp_path / "a" / "sae").hash == SAE.load(tmp_path / "b" / "sae").hash


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as ranks:
        result = learn(ranks)
        if ranks.first:
            save_file(result, Path(sys.argv[1]) / "found.safetensors")
