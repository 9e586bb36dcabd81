"""The server as a process of its own, over a tiny model: it drains, starts again, keeps to one sentence of error."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
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


def counted(server: Process, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def leaves_at_once(server: Process, stream: bool) -> None:
    """A client that asks for much, and is gone before it has it."""
    url, body = f"{server.url}/v1/chat/completions", asked(480, stream=stream)
    if stream:
        with httpx2.stream("POST", url, json=body, timeout=240) as got:
            next(got.iter_lines())
    else:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(url, json=body, timeout=0.3)


def test_clients_that_leave_are_forgotten_and_those_who_stay_are_served_past_sigterm(home):
    with Process(*words(home), "--rows", "2", "--drain", "240") as server:
        for number, stream in enumerate((True, False), 1):
            leaves_at_once(server, stream)
            while counted(server, "demur_engine_cancelled_total") < number:
                assert counted(server, "demur_engine_reply_tokens_total") < 480 * number
                time.sleep(0.05)
            assert httpx2.get(f"{server.url}/healthz").json() == {"status": "ok", "rows": 0, "waiting": 0}
        streams: list[list[str]] = [[], [], []]
        begun = threading.Semaphore(0)

        def read(into: list[str]) -> None:
            url, body = f"{server.url}/v1/chat/completions", asked(200, stream=True)
            with suppress(httpx2.ConnectError), httpx2.stream("POST", url, json=body, timeout=240) as got:
                for line in got.iter_lines():
                    if line:
                        into.append(line)
                        begun.release()

        threads = [threading.Thread(target=read, args=(into,)) for into in streams]
        for thread in threads:
            thread.start()
        begun.acquire()
        # Two have a row by now; the third waits, if it has come at all.
        time.sleep(0.2)
        server.process.terminate()
        for thread in threads:
            thread.join(240)
        assert server.process.wait(240) == 0
        assert sum(map(bool, streams)) >= 2
        for stream in filter(None, streams):
            assert stream[-1] == "data: [DONE]"
            assert json.loads(stream[-2][6:])["choices"][0]["finish_reason"] == "length"
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url}/healthz")


def test_a_server_that_was_killed_starts_again(home):
    with Process(*words(home)) as first:
        said = httpx2.post(f"{first.url}/v1/chat/completions", json=asked(9), timeout=60).json()
        first.process.kill()
        first.process.wait()
    with Process(*words(home)) as again:
        assert again.seconds < 15
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
            ],
            capture_output=True, text=True, timeout=280, cwd=home,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-2000:]
        assert httpx2.get(f"{server.url}/healthz").json() == {"status": "ok", "rows": 0, "waiting": 0}
        assert not any('"traceback"' in line for line in server.log)
