"""One library trains one SAE on saved activations: `python sae_worker.py LIBRARY JSON`, in that library's environment.

Started by `sae_training.py`. Each library's own training step is run, from its own trainer where that takes activations
from memory. Prints one JSON object: seconds of each step, and with `held_out` the quality on the last tokens.
"""

import json
import resource
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Job(NamedTuple):
    """What to train."""

    activations: str
    steps: int
    batch: int
    d_sae: int
    k: int
    rule: str = "topk"
    dead: float = 0.0
    """Share of the features that are held to be dead, with the dead-feature loss on."""
    held_out: int = 0
    lr: float | None = None
    model: str = ""
    """For sparsify: train from text; `activations` are then rows of token ids, and `line` its seconds in all."""


Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Dense features and reconstruction of raw activations."""


class Run:
    """Hands out batches, and notes when each is asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.x = torch.from_numpy(np.load(job.activations))
        self.usable = len(self.x) - job.held_out
        self.asked: list[float] = []
        self.dead = round(job.dead * job.d_sae)

    def batch(self, step: int) -> Tensor:
        """The step's batch; a step lasts from here until the next one is asked for."""
        start = step * self.job.batch % (self.usable - self.job.batch + 1)
        self.asked.append(time.perf_counter())
        return self.x[start : start + self.job.batch]

    def done(self, encode: Encode) -> dict[str, Any]:
        """Seconds of each step, and the quality if that was asked for."""
        seconds = np.diff([*self.asked, time.perf_counter()]).tolist()
        return {"seconds": seconds} | (self.quality(encode) if self.job.held_out else {})

    @torch.no_grad()
    def quality(self, encode: Encode) -> dict[str, float]:
        """FVU, active features per token, and share of features never active, on the held-out tokens."""
        x = self.x[self.usable :]
        error, active, fired = 0.0, 0, torch.zeros(self.job.d_sae, dtype=torch.bool)
        for part in x.split(2048):
            f, found = encode(part)
            error += float((part - found).double().pow(2).sum())
            active += int((f > 0).sum())
            fired |= (f > 0).any(0)
        variance = float((x - x.mean(0)).double().pow(2).sum())
        return {"fvu": error / variance, "l0": active / len(x), "dead": float((~fired).float().mean())}


def demur(run: Run) -> dict[str, Any]:
    from demur.sae.rules import RULES, dense
    from demur.sae.settings import SAESettings
    from demur.sae.sparse import product, rows_at_once
    from demur.sae.trainer import Trainer

    job = run.job
    # Code that torch loads at the first step is no memory of the SAE's.
    small = Trainer(8, SAESettings(d_sae=16, k=2, batch=64, rule=job.rule), steps=2)
    small.start(torch.randn(64, 8))
    small.step(torch.randn(64, 8))
    before = resident()
    settings = SAESettings(
        d_sae=job.d_sae, k=job.k, batch=job.batch, rule=job.rule, **({"lr": job.lr} if job.lr else {})
    )
    trainer = Trainer(run.x.shape[1], settings, steps=job.steps)
    trainer.start(run.x[: min(65_536, run.usable)])
    ceiling = []
    for step in range(job.steps):
        x = run.batch(step)
        if run.dead:
            trainer.counters["silent"][: run.dead] = 10**9
        trainer.step(x)
        if not job.held_out:
            # The encoder's forward product alone, between the steps; its time is taken off the step before.
            begun = time.perf_counter()
            for part in x.split(rows_at_once(job.d_sae, x.device)):
                product(part, trainer.weights["W_enc"], trainer.weights["b_enc"])
            ceiling.append(time.perf_counter() - begun)
    end = time.perf_counter()
    w, s = trainer.weights, trainer.counters["scale"]

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = product(x * s - w["b_dec"], w["W_enc"], w["b_enc"])
        f = dense(*RULES[job.rule](pre, job.k, trainer.rule.threshold()), job.d_sae)
        return f, (f @ w["W_dec"] + w["b_dec"]) / s

    found = run.done(encode)
    if ceiling:
        taken = np.diff([*run.asked, end]) - ceiling
        held = 16 * (2 * run.x.shape[1] + 1) * job.d_sae + 4 * job.batch * job.d_sae
        found |= {"seconds": taken.tolist(), "ceiling": ceiling, "memory": (peak() - before) / held}
    return found


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes that were in memory at once; `ru_maxrss` would count what the process held that started this one."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def sparsify(run: Run) -> dict[str, Any]:
    from sparsify import SaeConfig, TrainConfig
    from sparsify import Trainer as SparsifyTrainer

    job, rows = run.job, 32

    class Table(torch.nn.Module):
        """A model whose one layer gives the saved activations: token i is row i."""

        def __init__(self) -> None:
            super().__init__()
            self.site = torch.nn.Embedding.from_pretrained(run.x)
            self.device, self.dummy_inputs = torch.device("cpu"), {"input_ids": torch.zeros(1, 2, dtype=torch.long)}

        @property
        def base_model(self) -> torch.nn.Module:
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.site(input_ids)

    class Rows(torch.utils.data.Dataset):
        """Sequences of batch / rows tokens, one after the other."""

        def __len__(self) -> int:
            return job.steps * rows

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            if i % rows == 0:
                run.batch(i // rows)
                if run.dead:
                    trainer.num_tokens_since_fired["site"][: run.dead] = 10**9
            length = job.batch // rows
            start = (i // rows * job.batch) % (run.usable - job.batch + 1) + i % rows * length
            return {"input_ids": torch.arange(start, start + length)}

    config = TrainConfig(
        SaeConfig(num_latents=job.d_sae, k=job.k),
        batch_size=rows,
        hookpoints=["site"],
        log_to_wandb=False,
        save_every=10**9,
        lr=job.lr,
        save_dir="/tmp/sparsify-benchmark",
        # Without dead features its default, 0, which skips the loss; for quality, what its documentation advises.
        **({"auxk_alpha": 1 / 32} if run.dead or job.held_out else {}),
        **({"dead_feature_threshold": 100_000} if job.held_out else {}),
    )
    trainer = SparsifyTrainer(config, Rows(), Table())
    trainer.save = lambda: None
    trainer.fit()
    for optimiser in trainer.optimizers:
        if hasattr(optimiser, "eval"):
            optimiser.eval()
    coder = trainer.saes["site"]

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = coder.encode(x)
        return torch.zeros(len(x), job.d_sae).scatter_(1, indices, values), coder.decode(values, indices)

    return run.done(encode)


def sparsify_line(job: Job) -> dict[str, float]:
    """`python -m sparsify` on token ids; its entry knows GPUs only, so the model is put on the CPU for it."""
    import transformers
    from datasets import Dataset

    folder = Path(job.activations).parent
    Dataset.from_dict({"input_ids": np.load(job.activations).tolist()}).save_to_disk(str(folder / "text"))
    torch.cuda.is_bf16_supported = lambda *_: False
    made, begun = transformers.AutoModel.from_pretrained, 0.0

    def loaded(name: str, **_: Any) -> Any:
        nonlocal begun
        model = made(name, dtype=torch.float32)
        begun = time.perf_counter()  # as ours: with everything imported, and the model there
        return model

    transformers.AutoModel.from_pretrained = loaded
    layer, width = 14, len(np.load(job.activations)[0])
    sys.argv = ["sparsify", job.model, str(folder / "text"), "--layers", str(layer), "--ctx_len", str(width)]
    sys.argv += ["--batch_size", str(job.batch // width), "--num_latents", str(job.d_sae), "-k", str(job.k)]
    sys.argv += ["--log_to_wandb", "False", "--run_name", str(folder / "run"), "--save_dir", str(folder)]
    runpy.run_module("sparsify", run_name="__main__")
    return {"line": time.perf_counter() - begun}


def sae_lens(run: Run) -> dict[str, Any]:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    job = run.job
    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }
    made, config = kinds[job.rule]
    sae = made(config(d_in=run.x.shape[1], d_sae=job.d_sae, k=job.k, normalize_activations="expected_average_only_in"))

    def batches() -> Iterator[Tensor]:
        for step in range(20):  # for its estimate of the input's norm
            yield run.x[step * job.batch % (run.usable - job.batch + 1) :][: job.batch]
        step = 0
        while True:
            if run.dead:
                trainer.n_forward_passes_since_fired[: run.dead] = 10**9
            yield run.batch(step)
            step += 1

    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=job.steps * job.batch,
            train_batch_size_samples=job.batch,
            n_batches_for_norm_estimate=20,
            lr=job.lr or 3e-4,
            lr_end=(job.lr or 3e-4) / 10,
            **({"lr_warm_up_steps": job.steps // 20, "lr_decay_steps": job.steps // 5} if job.held_out else {}),
            **({"dead_feature_window": 100_000 // job.batch} if job.held_out else {}),
        ),
        sae,
        batches(),
    )
    trainer.fit()
    sae.eval()

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        if job.rule == "topk":
            f = sae.encode(x)
        else:  # in use it is a JumpReLU SAE
            pre = (sae.process_sae_in(x) @ sae.W_enc + sae.b_enc) * sae.W_dec.norm(dim=-1)
            f = pre * (pre > sae.topk_threshold).float()
        return f, sae.decode(f)

    return run.done(encode)


def dictionary_learning(run: Run) -> dict[str, Any]:
    from dictionary_learning.trainers import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    job = run.job
    warmup = job.steps // 20 if job.held_out else 0
    trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[job.rule](
        steps=job.steps,
        activation_dim=run.x.shape[1],
        dict_size=job.d_sae,
        k=job.k,
        layer=14,
        lm_name="none",
        device="cpu",
        lr=job.lr,
        warmup_steps=warmup,
        **({"decay_start": round(0.8 * job.steps), "threshold_start_step": warmup} if job.held_out else {}),
    )
    if job.held_out:
        trainer.dead_feature_threshold = 100_000
        trainer.threshold_beta = 0.99
    # As its `normalize_activations`: mean squared norm 1.
    scale = float(run.x[:50_000].pow(2).sum(1).mean().sqrt())
    for step in range(job.steps):
        x = run.batch(step)
        if run.dead:
            trainer.num_tokens_since_fired[: run.dead] = 10**9
        trainer.update(step, x / scale)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        f = trainer.ae.encode(x / scale)
        return f, trainer.ae.decode(f) * scale

    return run.done(encode)


LIBRARIES = {
    "demur": demur,
    "sparsify": sparsify,
    "sae_lens": sae_lens,
    "dictionary_learning": dictionary_learning,
}

if __name__ == "__main__":
    torch.manual_seed(0)
    asked = Job(**json.loads(sys.argv[2]))
    result = sparsify_line(asked) if asked.model else LIBRARIES[sys.argv[1]](Run(asked))
    print(json.dumps(result))
