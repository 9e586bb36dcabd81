"""Load on the server: thousands of requests, a tenth of them bad or given up; no answer lost, none mixed up, memory flat.

    .venv/bin/python benchmarks/soak.py [--requests 2000] [--concurrent 64] [--new 16] [--model embedded] [--json]

First each of the distinct requests is asked alone, with the two likeliest tokens at each place. Then all are asked at
once, over and over, under two levels, half of them streamed. An answer is right if its tokens are those of the one asked
alone, up to the first place where the likeliest two lay within 1e-3 nats of each other (the law of the design). Of ten
requests one is cancelled after its first text, malformed, or too large. Exit 1 where an answer is wrong or lost, where
the server answers 5xx or dies, or where its memory has grown by more than a tenth from a third of the way on.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2

from demur.data.prompts import shipped_prompts

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.server.process import Process

MARGIN = 1e-3
HEAD = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}]}
LONG = [{"role": "user", "content": "x " * 9000}]
BAD = {
    "malformed": (b'{"model": ', 400),
    "no messages": (json.dumps({"model": "smollm2-135m"}).encode(), 400),
    "too many tokens": (json.dumps(HEAD | {"max_tokens": 999_999}).encode(), 400),
    "too long": (json.dumps(HEAD | {"messages": LONG}).encode(), 400),
    "too large": (b"x" * 1_100_000, 413),
}
"""What is sent, and the status that it should get."""


class Soak:
    """One run."""

    def __init__(self, server: Process, args) -> None:
        self.server, self.args, self.draw = server, args, random.Random(0)
        self.alone: dict[tuple[int, str], list[tuple[str, float]]] = {}
        """Of each request asked alone: its tokens, and the margin of the likeliest over the next at each place."""
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        rows = shipped_prompts("test").sample(args.distinct).rows
        self.talks = [[m.model_dump() for m in row.conversation] for row in rows]
        self.memory: list[tuple[int, int]] = []

    def body(self, key: tuple[int, str], stream: bool) -> dict:
        """The request of a key."""
        number, level = key
        asked = {"model": f"{self.args.base}:{level}", "messages": self.talks[number], "max_tokens": self.args.new}
        return asked | {"logprobs": True, "top_logprobs": 2, "stream": stream, "temperature": 0}

    async def reference(self, http: httpx2.AsyncClient) -> None:
        """Asks each request alone."""
        for number in range(len(self.talks)):
            for level in self.args.levels:
                got = await http.post("/v1/chat/completions", json=self.body((number, level), False))
                got.raise_for_status()
                self.alone[number, level] = [
                    (t["token"], t["top_logprobs"][0]["logprob"] - t["top_logprobs"][1]["logprob"])
                    for t in got.json()["choices"][0]["logprobs"]["content"]
                ]

    async def one(self, http: httpx2.AsyncClient, number: int) -> None:
        """One request of the load."""
        key = (number * 7 % len(self.talks), self.args.levels[number % len(self.args.levels)])
        if number % 10 == 9:
            await self.bad(http, key, number // 10)
            return
        try:
            tokens, told = await (self.streamed if number % 2 else self.whole)(http, key)
        except Exception as error:
            self.counts["lost"] += 1
            self.wrong.append(f"request {number} {key}: {type(error).__name__}: {error}")
            return
        self.counts["answered"] += 1
        if told != key[1]:
            self.wrong.append(f"request {number} {key} was answered at level {told}")
        for place, (token, (wanted, margin)) in enumerate(zip(tokens, self.alone[key], strict=False)):
            if token != wanted:
                if margin > MARGIN:
                    self.wrong.append(
                        f"request {number} {key}: token {place} is {token!r}, alone {wanted!r} ({margin:.4f})"
                    )
                else:
                    self.counts["parted at a near tie"] += 1
                return
        if len(tokens) != len(self.alone[key]):
            self.wrong.append(f"request {number} {key}: {len(tokens)} tokens, alone {len(self.alone[key])}")

    async def whole(self, http: httpx2.AsyncClient, key: tuple[int, str]) -> tuple[list[str], str]:
        """Tokens and level of an answer in one piece."""
        got = await http.post("/v1/chat/completions", json=self.body(key, False))
        got.raise_for_status()
        answer = got.json()
        return [t["token"] for t in answer["choices"][0]["logprobs"]["content"]], answer["demur"]["level"]

    async def streamed(self, http: httpx2.AsyncClient, key: tuple[int, str]) -> tuple[list[str], str]:
        """Tokens and level of an answer in many."""
        tokens, level, last = [], "", ""
        async with http.stream("POST", "/v1/chat/completions", json=self.body(key, True)) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    last = line[6:]
                if line.startswith("data: {"):
                    chunk = json.loads(last)
                    level = chunk.get("demur", {}).get("level", level)
                    tokens += [t["token"] for c in chunk["choices"] for t in (c["logprobs"] or {}).get("content", ())]
        if last != "[DONE]":
            raise RuntimeError("the stream broke off")
        return tokens, level

    async def bad(self, http: httpx2.AsyncClient, key: tuple[int, str], turn: int) -> None:
        """One that is given up, or that cannot be answered."""
        kinds = ["given up", *BAD]
        kind = kinds[turn % len(kinds)]
        self.counts[kind] += 1
        if kind == "given up":
            async with http.stream("POST", "/v1/chat/completions", json=self.body(key, True)) as answer:
                async for _ in answer.aiter_lines():
                    return
            return
        content, status = BAD[kind]
        got = await http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        if got.status_code != status:
            self.wrong.append(f"{kind}: status {got.status_code}, expected {status}: {got.text[:200]}")

    async def run(self) -> dict:
        """All of it."""
        limits = httpx2.Limits(max_connections=self.args.concurrent)
        async with httpx2.AsyncClient(base_url=self.server.url, timeout=600, limits=limits) as http:
            await self.reference(http)
            waiting = list(reversed(range(self.args.requests)))
            began = time.perf_counter()

            async def client() -> None:
                while waiting:
                    number = waiting.pop()
                    if number % max(1, self.args.requests // 24) == 0:
                        self.memory.append((number, resident(self.server.process.pid)))
                    await self.one(http, number)

            await asyncio.gather(*(client() for _ in range(self.args.concurrent)))
            seconds = time.perf_counter() - began
            self.memory.append((self.args.requests, resident(self.server.process.pid)))
            health = (await http.get("/healthz")).json()
        settled = [kib for number, kib in self.memory if number >= self.args.requests / 3]
        grown = settled[-1] / settled[0] - 1
        return {
            "requests": self.args.requests,
            "seconds": seconds,
            "counts": dict(self.counts),
            "wrong": self.wrong,
            "memory_mib": [(n, kib // 1024) for n, kib in self.memory],
            "memory_grown": grown,
            "health": health,
            "good": not self.wrong
            and not self.counts["lost"]
            and grown < 0.1
            and health["rows"] == health["waiting"] == 0,
        }


def resident(pid: int) -> int:
    """Memory that a process holds, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--distinct", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.base, args.levels = "smollm2-135m", ("standard", "off")
    with Process("--policy", "gated") as server:
        found = asyncio.run(Soak(server, args).run()) | {"ready_seconds": server.seconds}
        found["exit"] = server.end()
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{found['requests']} requests in {found['seconds']:.0f} s: {found['counts']}")
        memory = ", ".join(f"{n}: {mib}" for n, mib in found["memory_mib"])
        print(f"memory, MiB, by requests: {memory} ({100 * found['memory_grown']:+.1f} %)")
        print("\n".join(found["wrong"][:20]) or "no answer lost, none mixed up")
    sys.exit(0 if found["good"] and found["exit"] == 0 else 1)


if __name__ == "__main__":
    main()
