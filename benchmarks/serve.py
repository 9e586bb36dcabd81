"""How fast the server is: tokens a second beside a bare batched `generate` and beside transformers' own server.

    .venv/bin/pip install openai      # which `transformers serve` needs
    .venv/bin/python benchmarks/serve.py [--prompts 64] [--new 64] [--clients 16] [--rounds 3] [--json]

All answer the same shipped test prompts with the embedded model in float32, greedily, in turns; the ratios are of the
medians. The bare loop has all prompts from the start, sorted by length, in batches of as many rows as there are clients;
the servers get them one by one from so many clients, each of which asks again when it is answered (streamed, so that the
time to the first text is seen). Ours is measured plain (`off`) and with the gate at work (`standard`),
transformers' without and with its continuous batching, where that answers on this machine. Only ours tells what fired.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import httpx2
import torch

from demur.data.prompts import shipped_prompts
from demur.models import embedded
from demur.models.load import ModelSettings, load


def bare(lm, talks, new: int, rows: int) -> int:
    """Tokens made by the loop that anybody would write."""
    tokenizer, made = lm.tokenizer, 0
    texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in talks]
    texts.sort(key=lambda text: -len(tokenizer(text)["input_ids"]))
    tokenizer.padding_side = "left"
    for start in range(0, len(texts), rows):
        batch = tokenizer(texts[start : start + rows], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = lm.model.generate(**batch, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            made += row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
    return made


async def asked(url: str, model: str, talks, new: int, clients: int, count) -> tuple[int, list[float], list[float]]:
    """Tokens that a server made, seconds to the first text and to the last, of each request."""
    waiting, firsts, wholes, made = list(reversed(talks)), [], [], 0

    async def client(http: httpx2.AsyncClient) -> None:
        nonlocal made
        while waiting:
            body = {"model": model, "messages": waiting.pop(), "max_tokens": new, "temperature": 0, "stream": True}
            began, text, first = time.perf_counter(), "", None
            async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    for choice in json.loads(line[6:])["choices"]:
                        if choice["delta"].get("content"):
                            first = first or time.perf_counter() - began
                            text += choice["delta"]["content"]
            wholes.append(time.perf_counter() - began)
            firsts.append(first or wholes[-1])
            made += count(text, new)

    async with httpx2.AsyncClient(timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return made, firsts, wholes


@contextmanager
def server(command: list[str], url: str, path: str):
    """A server as a process of its own; gives the seconds until it answered."""
    began = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **quiet)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}")
            try:
                if httpx2.get(url + path).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ours(port: int, clients: int) -> list[str]:
    words = ["serve", "--policy", "gated", "--port", str(port), "--rows", str(clients)]
    return [sys.executable, "-m", "demur", *words]


def theirs(port: int, *flags: str) -> list[str]:
    serve = "from transformers.cli.transformers import main; main()"
    words = ["serve", str(embedded.folder()), "--port", str(port), "--dtype", "float32", "--device", "cpu", *flags]
    return [sys.executable, "-c", serve, *words]


def measure(args) -> dict:
    lm = load(ModelSettings())
    rows = shipped_prompts("test").sample(args.prompts).rows
    talks = [[m.model_dump() for m in row.conversation] for row in rows]

    def count(text: str, new: int) -> int:
        # The token that ends a reply counts as the bare loop counts it.
        tokens = len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
        return min(new, tokens + 1)

    speeds: dict[str, list[float]] = {}
    latencies: dict[str, list] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as running:
        at = [f"http://127.0.0.1:{args.port + i}" for i in range(3)]
        ready = running.enter_context(server(ours(args.port, args.clients), at[0], "/healthz"))
        running.enter_context(server(theirs(args.port + 1), at[1], "/health"))
        urls = {
            "demur off": (at[0], "smollm2-135m:off"),
            "demur standard": (at[0], "smollm2-135m:standard"),
            "transformers serve": (at[1], str(embedded.folder())),
        }
        try:
            running.enter_context(server(theirs(args.port + 2, "--continuous-batching"), at[2], "/health"))
            urls["transformers serve, continuous batching"] = (at[2], str(embedded.folder()))
        except RuntimeError as error:
            left_out["transformers serve, continuous batching"] = str(error)
        for name, (url, model) in list(urls.items()):  # warm up, and see who answers at all
            try:
                asyncio.run(asyncio.wait_for(asked(url, model, talks[:2], 4, 2, count), 120))
            except Exception as error:
                if name.startswith("demur"):
                    raise
                left_out[name] = f"{type(error).__name__}: {error}"
                urls.pop(name)
        bare(lm, talks[:2], 4, 2)
        for _ in range(args.rounds):
            began = time.perf_counter()
            made = bare(lm, talks, args.new, args.clients)
            speeds.setdefault("bare", []).append(made / (time.perf_counter() - began))
            for name, (url, model) in urls.items():
                began = time.perf_counter()
                made, firsts, wholes = asyncio.run(asked(url, model, talks, args.new, args.clients, count))
                speeds.setdefault(name, []).append(made / (time.perf_counter() - began))
                latencies.setdefault(name, []).append((firsts, wholes))
    return {
        "ready_seconds": ready,
        "left_out": left_out,
        "tokens_per_second": {name: statistics.median(found) for name, found in speeds.items()},
        "rounds": speeds,
        "first_text_seconds": {n: quantiles([f for firsts, _ in r for f in firsts]) for n, r in latencies.items()},
        "whole_seconds": {n: quantiles([w for _, wholes in r for w in wholes]) for n, r in latencies.items()},
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found))
        return
    speed = found["tokens_per_second"]
    print(f"ready after {found['ready_seconds']:.1f} s")
    for name, tokens in speed.items():
        line = f"{name:20} {tokens:7.1f} tokens/s, {100 * tokens / speed['bare']:5.1f} % of bare"
        if name in found["first_text_seconds"]:
            first, whole = found["first_text_seconds"][name], found["whole_seconds"][name]
            line += f"; first text {first['median']:.2f} s (p95 {first['p95']:.2f})"
            line += f", whole {whole['median']:.2f} s (p95 {whole['p95']:.2f})"
        print(line)
    for name, why in found["left_out"].items():
        print(f"{name}: left out ({why})")


if __name__ == "__main__":
    main()
