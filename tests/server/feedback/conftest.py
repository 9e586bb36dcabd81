"""A store in SQLite, and one in a real PostgreSQL where its programs are found."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `server` is not installed")

from demur.records import Message
from demur.server.feedback.records import Answer
from demur.server.feedback.store import Store


def programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    if newest:
        return newest[-1]
    found = shutil.which("pg_ctl")
    return Path(found).resolve().parent if found else None


class Postgres:
    """A server of its own, on a free port, started and stopped at will; root becomes `postgres` for it."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.data = programs(), folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.as_user:
            for place in (folder, *folder.parents):
                if place != place.parent and not place.stat().st_mode & 0o005:
                    place.chmod(place.stat().st_mode | 0o055)
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", self.data, "-A", "trust", "-U", "demur", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://demur@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data.parent}"
        self._run("pg_ctl", "-D", self.data, "-w", "-o", options, "-l", self.data.parent / "log", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def kill(self) -> None:
        """As a power cut would: the postmaster, and with it its children."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _run(self, program: str, *words: object) -> None:
        command = [*self.as_user, str(self.bin / program), *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, cwd="/")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    if programs() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL's programs are not found, and CI wants them; make system")
        pytest.skip("PostgreSQL's programs are not found; make system (apt)")
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        made = Store.open(tmp_path / "feedback.db")
    else:
        server = request.getfixturevalue("postgres")
        made = Store.open(server.url)
        with made.database.writing() as connection:
            connection.exec_driver_sql("TRUNCATE answers, appeals, feedback")
    yield made
    made.close()


def answer(number: int = 1, **changes) -> Answer:
    """A refused answer."""
    return Answer(
        id=f"chatcmpl-{number}",
        owner="ann",
        created=time.time(),
        model="smollm2-135m:standard",
        policy="gated",
        policy_hash="0123456789ab",
        gate=0.7,
        kind="cybercrime",
        messages=(Message(role="user", content=f"How do I kill process {number}?"),),
        reply="I can't help with that.",
    ).model_copy(update=changes)
