"""How fast an SAE is trained, and how good it gets, beside sparsify, SAELens and dictionary_learning.

    .venv/bin/python benchmarks/sae_training.py [--json] [--parts speed growth quality line] [--rounds 3]

The peers' environments are made in the cache folder (`DEMUR_CACHE`) with the torch of this one; the activations are those
of the embedded model on the text in `DEMUR_DATA`, saved there once. Every library runs in a process of its own, all on
the same saved activations (`sae_worker.py`), one after the other, round by round; figures are medians.

- speed: steps of the optimiser, activations in memory, with no feature dead and with a tenth dead and the dead-feature
  loss on. `ratio` is our tokens a second over each peer's; `ceiling_share` our time against the encoder's forward product
  alone, the fastest way we know, measured between our steps.
- growth: the same for us at four times the features, and peak memory over what is asked for (weights, Adam's moments,
  gradients, one batch of pre-activations).
- quality: FVU and dead share on held-out activations after the same tokens in the same batches, for Top-k and BatchTopK;
  each library at its default learning rate and, since those are made for longer trainings, at three and ten times that.
- line: text → SAE against `python -m sparsify` (its own entry, told to use the CPU) on the same text, model and site;
  and against the model's layers up to the site alone.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from demur.config import cache_folder
from demur.files import replacing

HERE = Path(__file__).parent
PEERS = {"sparsify": "eai-sparsify", "sae_lens": "sae-lens", "dictionary_learning": "dictionary-learning"}
RELEASES = {"sparsify": "1.3.3", "sae_lens": "6.54.12", "dictionary_learning": "0.1.0"}
"""Those that the parity tests compare with."""
SITE = "14.resid_post"
FILES = ("chat_refusals_open", "chat_topical", "web_usgov", "web_peps", "web_openstax_ccby", "books_standardebooks")
SHAPE = {"d_sae": 4608, "k": 32}
RATES = {"sparsify": 5e-3 / (4608 / 2**14) ** 0.5, "sae_lens": 3e-4, "dictionary_learning": None}
RATES["dictionary_learning"] = 2e-4 / (4608 / 2**14) ** 0.5
HELD_OUT = 16_384


def python_of(library: str) -> str:
    """The interpreter of a peer's environment, which is made if it is not there."""
    if library == "demur":
        return sys.executable
    folder = cache_folder() / "peers" / f"{PEERS[library]}-{RELEASES[library]}"
    python, done = folder / "bin" / "python", folder / "ready"
    if not done.is_file():
        sys.stderr.write(f"making an environment for {PEERS[library]}\n")
        venv.create(folder, with_pip=True)
        torch = f"torch=={version('torch').split('+')[0]}"
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", torch], check=True)
        (folder / "constraints.txt").write_text(f"{torch}\n")
        release = f"{PEERS[library]}=={RELEASES[library]}"
        subprocess.run([*pip, "install", "-c", str(folder / "constraints.txt"), release], check=True)
        # Nobody here looks at pictures, and a build of it for GPUs does not load beside a torch for CPUs.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        done.touch()
    return str(python)


def activations(tokens: int) -> Path:
    """Saved activations of the embedded model, at least so many."""
    from demur.activations.stream import ActivationStream
    from demur.models.load import load

    lm = load()
    path = cache_folder() / "benchmarks" / f"{lm.hash}-{SITE}.npy"
    if path.is_file() and len(np.load(path, mmap_mode="r")) >= tokens:
        return path
    stream = ActivationStream(lm, (SITE,), sequences(lm.tokenizer, round(1.05 * tokens)), 65_536, seed=0)
    found = [x[:, 0].numpy().copy() for x in stream.through(4096)]
    with replacing(path) as tmp, tmp.open("wb") as file:
        np.save(file, np.concatenate(found))
    return path


def sequences(tokenizer: Any, tokens: int) -> Any:
    """Sequences of at most 256 tokens from the data folder's text, mixed."""
    from demur.data.corpus import Sequences, Source, take

    each = -(-tokens // len(FILES))
    rows = [row for f in FILES for row in take(tokenizer, Source(path=f"text/{f}.jsonl.gz", tokens=each), 256, 0)]
    random.Random(0).shuffle(rows)
    return Sequences.of(rows)


def work(library: str, **job: Any) -> dict[str, Any]:
    """What the worker found."""
    command = [python_of(library), str(HERE / "sae_worker.py"), library, json.dumps(job)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{library}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(rounds: int, steps: int) -> dict[str, Any]:
    """Tokens a second of each library, without and with dead features."""
    found: dict[str, Any] = {}
    for arm, dead in (("no feature dead", 0.0), ("a tenth dead", 0.1)):
        seconds: dict[str, list[float]] = {name: [] for name in ("demur", *PEERS)}
        ceiling: list[float] = []
        for _ in range(rounds):
            for name in seconds:
                job = {"activations": str(activations(100_000)), "steps": steps, "batch": 4096, "dead": dead, **SHAPE}
                made = work(name, **job)
                seconds[name] += made["seconds"][2:]  # the first ones make room
                ceiling += made.get("ceiling", [])[2:]
        medians = {name: statistics.median(taken) for name, taken in seconds.items()}
        found[arm] = {
            "tokens_per_second": {name: round(4096 / taken) for name, taken in medians.items()},
            "ratio": {name: round(medians[name] / medians["demur"], 2) for name in PEERS},
            "ceiling_tokens_per_second": round(4096 / statistics.median(ceiling)),
            "ceiling_share": round(statistics.median(ceiling) / medians["demur"], 3),
        }
    return found


def growth(rounds: int, steps: int) -> dict[str, Any]:
    """Ours at four times the features, and the memory it takes."""
    taken: dict[int, list[float]] = {4608: [], 18_432: []}
    memory: dict[int, float] = {}
    for _ in range(rounds):
        for d_sae in taken:
            job = {"activations": str(activations(100_000)), "steps": steps, "batch": 4096, "k": 32, "d_sae": d_sae}
            made = work("demur", **job)
            taken[d_sae] += made["seconds"][2:]
            memory[d_sae] = max(memory.get(d_sae, 0.0), made["memory"])
    rate = {d_sae: 4096 / statistics.median(seconds) for d_sae, seconds in taken.items()}
    return {
        "tokens_per_second": {str(d_sae): round(r) for d_sae, r in rate.items()},
        "at_4_times": round(rate[18_432] / rate[4608], 3),
        "memory_over_needed": {str(d_sae): round(m, 2) for d_sae, m in memory.items()},
    }


def quality(
    tokens: int, batch: int, rules: list[str], rates: list[int], libraries: list[str], k: int
) -> dict[str, Any]:
    """FVU, dead share and active features per token on held-out activations, by rule, library and learning rate."""
    path, found = activations(tokens + HELD_OUT), {}
    for rule in rules:
        for name in libraries:
            if name == "sparsify" and rule == "batchtopk":
                continue  # it has none
            for times in [1] if name == "demur" else rates:
                job = {"steps": tokens // batch, "batch": batch, "rule": rule, "held_out": HELD_OUT, **SHAPE, "k": k}
                made = work(name, activations=str(path), lr=times * RATES[name] if name in RATES else None, **job)
                key = f"{rule} {name}" + (f" lr × {times}" if times > 1 else "")
                found[key] = {figure: round(made[figure], 4) for figure in ("fvu", "dead", "l0")}
                sys.stderr.write(f"{key}: {found[key]}\n")
    return found


def line(tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second from text to SAE, ours and sparsify's, and of the layers up to the site alone."""
    import torch

    from demur.activations.stream import TOKENS_PER_PASS, read_rows
    from demur.data.corpus import Sequences
    from demur.models import embedded
    from demur.models.load import load
    from demur.sae.settings import SAESettings
    from demur.sae.train import train

    lm = load()
    flat = sequences(lm.tokenizer, tokens).tokens
    rows = flat[: len(flat) // 256 * 256].reshape(-1, 256)  # as sparsify cuts text
    settings = SAESettings(site=SITE, batch=4096, checkpoint_every=1e9, **SHAPE)
    seconds: dict[str, list[float]] = {"demur": [], "sparsify": [], "layers": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            train(lm, Sequences.of(rows), settings, Path(folder))
        seconds["demur"].append((time.perf_counter() - begun) / rows.size)
        begun = time.perf_counter()
        step = TOKENS_PER_PASS // 256
        for start in range(0, len(rows), step):
            read_rows(lm, [SITE], list(rows[start : start + step]))
        seconds["layers"].append((time.perf_counter() - begun) / rows.size)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "rows.npy", rows)
            job = {"activations": f"{folder}/rows.npy", "steps": 0, "batch": 4096, "model": str(embedded.folder())}
            seconds["sparsify"].append(work("sparsify", **job, **SHAPE)["line"] / rows.size)
        torch.manual_seed(0)
    rate = {name: 1 / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "tokens_per_second": {name: round(r) for name, r in rate.items()},
        "ratio": round(rate["demur"] / rate["sparsify"], 2),
        "share_of_layers_alone": round(rate["demur"] / rate["layers"], 3),
    }


def cpuinfo() -> str:
    """What the processor calls itself, and the vector instructions on which its speed depends."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = {
        key: next((s.split(":", 1)[1].strip() for s in lines if s.startswith(key)), "")
        for key in ("model name", "flags")
    }
    known = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in said["flags"].split()]
    return f"{said['model name']} ({', '.join(known)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--parts", nargs="+", default=["speed", "growth"], choices=["speed", "growth", "quality", "line"]
    )
    parser.add_argument("--quality", action="store_true", help="the same as adding it to --parts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=409_600, help="that quality is measured after")
    parser.add_argument("--batch", type=int, default=1024, help="of the quality's trainings")
    parser.add_argument("--rules", nargs="+", default=["topk", "batchtopk"], choices=["topk", "batchtopk"])
    parser.add_argument(
        "--rates", nargs="+", type=int, default=[1, 3, 10], help="times the peers' default learning rate"
    )
    parser.add_argument("--libraries", nargs="+", default=["demur", *PEERS], help="whose quality is measured")
    parser.add_argument("--k", type=int, default=SHAPE["k"], help="of the quality's trainings")
    parser.add_argument("--line-tokens", type=int, default=40_960, help="from text to SAE")
    given = parser.parse_args()
    parts = [*given.parts, *(["quality"] if given.quality else [])]
    found: dict[str, Any] = {}
    if "speed" in parts:
        found["speed"] = speed(given.rounds, given.steps)
        plain = found["speed"]["no feature dead"]
        found |= {"ratio": plain["ratio"], "ceiling_share": plain["ceiling_share"]}
    if "growth" in parts:
        found["growth"] = growth(given.rounds, given.steps)
    if "quality" in parts:
        found["quality"] = quality(given.tokens, given.batch, given.rules, given.rates, given.libraries, given.k)
    if "line" in parts:
        found["line"] = line(given.line_tokens, given.rounds)
    found["on"] = {"processor": cpuinfo(), "cores": os.cpu_count(), "torch": version("torch"), "peers": RELEASES}
    print(json.dumps(found, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
