"""The server as a process of its own, over a tiny model: it drains, starts again, keeps to one sentence of error."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
import torch

from tests import tiny
from tests.server.process import ROOT, Process
from tests.server.test_clients import BIN


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a tiny model and a policy on it."""
    folder = tmp_path_factory.mktemp("home")
    lm, sae = tiny.lm("llama", torch.float32), tiny.sae("llama", 1).to(torch.zeros(()))
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    sae.config = sae.config.model_copy(update={"model_hash": lm.hash})
    sae.save(folder / "sae")
    given = {"model_hash": lm.hash, "saes": {sae.config.site: sae.hash}}
    tiny.policy().model_copy(update=given).save(folder / "good.toml")
    return folder


def words(home: Path) -> list[str]:
    return ["--model", str(home / "model"), "--sae", str(home / "sae"), "--policy", str(home / "good.toml")]


def asked(tokens: int, **more) -> dict:
    body = {"model": "model", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, **more}
    return body | {"max_tokens": tokens}


def test_what_is_under_way_at_sigterm_is_written_to_its_end(home):
    with Process(*words(home), "--rows", "2") as server:
        streams: list[list[str]] = [[], [], []]
        begun = threading.Semaphore(0)

        def read(into: list[str]) -> None:
            with httpx2.stream(
                "POST", f"{server.url}/v1/chat/completions", json=asked(300, stream=True), timeout=120
            ) as got:
                for line in got.iter_lines():
                    if line:
                        into.append(line)
                        begun.release()

        threads = [threading.Thread(target=read, args=(into,)) for into in streams]
        for thread in threads:
            thread.start()
        begun.acquire()
        server.process.terminate()
        for thread in threads:
            thread.join(120)
        assert server.process.wait(60) == 0
        whole = [s for s in streams if s and s[-1] == "data: [DONE]"]
        # Two had a row; the third may have come too late to be let in, and is then told nothing at all.
        assert len(whole) >= 2
        assert all(s in whole or not s for s in streams)
        for stream in whole:
            chunks = [json.loads(line[6:]) for line in stream[:-1]]
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url}/healthz")


def test_a_server_that_was_killed_starts_again(home):
    with Process(*words(home)) as first:
        said = httpx2.post(f"{first.url}/v1/chat/completions", json=asked(9), timeout=60).json()
        first.process.kill()
        first.process.wait()
    with Process(*words(home)) as again:
        assert again.seconds < 60
        got = httpx2.post(f"{again.url}/v1/chat/completions", json=asked(9), timeout=60).json()
        assert got["choices"] == said["choices"]
        busy = subprocess.run(
            [sys.executable, "-m", "demur", "serve", *words(home), "--port", again.url.rpartition(":")[2]],
            capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        assert busy.returncode == 1
        assert "cannot listen on 127.0.0.1" in busy.stderr
        assert "Traceback" not in busy.stderr


@pytest.mark.clients
@pytest.mark.slow
def test_nothing_that_the_description_allows_brings_the_server_down(home):
    with Process(*words(home), "--max-new-tokens", "8") as server:
        made = subprocess.run(
            [
                BIN / "schemathesis", "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error",
                "--max-examples", os.environ.get("DEMUR_FUZZ", "40"), "--seed", "1", "--no-color",
                "--exclude-path", "/metrics",
            ],
            capture_output=True, text=True, timeout=280, cwd=home,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-2000:]
        assert httpx2.get(f"{server.url}/healthz").json() == {"status": "ok", "rows": 0, "waiting": 0}
        assert not any('"traceback"' in line for line in server.log)
