"""A server as a process of its own, from the command that a user would type."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]


class Process:
    """`demur serve` with these words, on a free port; ready once it answers."""

    def __init__(self, *words: str | Path, seconds: float = 240) -> None:
        began = time.monotonic()
        self._home = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demur", "serve", "--port", "0", *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # vLLM has processes of its own, which must not outlive it
            env=os.environ
            | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "DEMUR_STORE": f"{self._home.name}/feedback.db"},
        )
        self.log: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > began + seconds:
                self._kill()
                raise RuntimeError(f"the server did not come up: {''.join(self.log)}")
            time.sleep(0.1)
        self.seconds = time.monotonic() - began
        """From the command to the first answer."""

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r" at (http://\S+)/v1;", line):
                self.url = found[1]

    def _is_ready(self) -> bool:
        try:
            return bool(self.url) and httpx2.get(f"{self.url}/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    def end(self) -> int:
        """SIGTERM; gives the exit code."""
        self.process.terminate()
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
