"""What the store is for: nothing that was acknowledged is lost, and every fault is one sentence, then over."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `server` is not installed")

from demur.errors import StoreError
from demur.server.feedback import database
from demur.server.feedback.statistics import statistics
from demur.server.feedback.store import Store
from tests.server.feedback.conftest import answer

ROOT = Path(__file__).parents[3]


def killed(where: str, kills: int) -> dict:
    """What `killed.py` reports."""
    command = [sys.executable, "-m", "tests.server.feedback.killed", where, str(kills), "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_killed_210_times_while_writing_no_acknowledged_appeal_is_lost(tmp_path):
    found = killed(str(tmp_path / "feedback.db"), 210)
    assert found["killed"] == 210
    assert found["acknowledged"] >= 210
    assert found["lost"] == []
    with sqlite3.connect(tmp_path / "feedback.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_writers_to_postgresql_killed_20_times_lose_nothing(postgres):
    found = killed(postgres.url, 20)
    assert found["killed"] == 20
    assert found["lost"] == []


def test_postgresql_itself_killed_while_writing_loses_nothing(postgres):
    store, acknowledged, stop, told = Store.open(postgres.url), [], threading.Event(), []

    def write(first: int) -> None:
        for number in range(first, first + 1_000_000):
            if stop.is_set():
                return
            try:
                store.keep(answer(f"pg-{number}"))
                acknowledged.append(store.appeal("ann", f"chatcmpl-pg-{number}", f"Argument {number}.").id)
            except StoreError as error:
                told.append(str(error))
                time.sleep(0.1)

    threads = [threading.Thread(target=write, args=(n * 1_000_000,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        before = len(acknowledged)
        while len(acknowledged) < before + 20:
            time.sleep(0.01)
        postgres.kill()
        postgres.start()
    stop.set()
    for thread in threads:
        thread.join()
    assert told and all("does not answer" in t or "was lost" in t for t in told)
    assert all(store.case(appeal).appeal.argument for appeal in acknowledged)
    store.close()


def test_a_full_disk_is_one_sentence_and_then_over(small_disk):
    store = Store.open(small_disk / "feedback.db")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (free(small_disk) - 64 * 1024))
    acknowledged = []
    with pytest.raises(StoreError, match="no room on the disk"):
        for number in range(10_000):
            store.keep(answer(number, reply="no " * 500))
            acknowledged.append(store.appeal("ann", f"chatcmpl-{number}", "Please.").id)
    filler.unlink()
    store.keep(answer("later"))
    acknowledged.append(store.appeal("ann", "chatcmpl-later", "Please.").id)
    assert all(store.case(appeal).appeal.argument == "Please." for appeal in acknowledged)
    store.close()


def free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(tmp_path)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("this user may not mount a small disk; run as root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_locked_database_is_one_sentence_and_then_over(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    store = Store.open(tmp_path / "feedback.db")
    store.keep(answer())
    other = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"has been locked by another program for 0.3 s; nothing was written"):
        store.appeal("ann", "chatcmpl-1", "Please.")
    assert statistics(store).every.refused == 1  # readers are not kept out
    other.execute("ROLLBACK")
    assert store.appeal("ann", "chatcmpl-1", "Please.").state == "open"
    other.close()
    store.close()


def test_a_locked_table_of_postgresql_is_one_sentence_and_then_over(postgres, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 1.0)
    store, other = Store.open(postgres.url), Store.open(postgres.url)
    store.keep(answer("locked"))
    with other.database.writing() as connection:
        connection.exec_driver_sql("LOCK TABLE appeals IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreError, match="has been locked by another program"):
            store.appeal("ann", "chatcmpl-locked", "Please.")
    assert store.appeal("ann", "chatcmpl-locked", "Please.").state == "open"
    store.close()
    other.close()


def test_dropped_connections_are_made_anew(postgres):
    store, other = Store.open(postgres.url), Store.open(postgres.url)
    store.keep(answer("dropped"))
    drop = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )
    with other.database.writing() as connection:
        connection.exec_driver_sql(drop)
    # Dropped while nobody used it: nobody notices.
    assert store.appeal("ann", "chatcmpl-dropped", "Please.").state == "open"
    # Dropped in the middle of a transaction: told, nothing written, and over.
    with pytest.raises(StoreError, match="was lost"), store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE appeals SET state = 'upheld' WHERE answer = 'chatcmpl-dropped'")
        with other.database.writing() as killer:
            killer.exec_driver_sql(drop)
        connection.exec_driver_sql("SELECT 1")
    assert store.appeal("ann", "chatcmpl-dropped", "Again.").state == "open"
    store.close()
    other.close()


def test_a_stopped_postgresql_is_one_sentence_and_then_over(postgres):
    store = Store.open(postgres.url)
    store.keep(answer("stopped"))
    postgres.stop()
    try:
        with pytest.raises(StoreError, match=r"does not answer|was lost"):
            store.appeal("ann", "chatcmpl-stopped", "Please.")
    finally:
        postgres.start()
    assert store.appeal("ann", "chatcmpl-stopped", "Please.").state == "open"
    store.close()


def test_a_place_that_may_not_be_written_to_is_one_sentence(tmp_path):
    Store.open(tmp_path / "feedback.db").close()
    with sqlite3.connect(tmp_path / "notes.db") as connection:
        connection.execute("CREATE TABLE answers (x)")
    with pytest.raises(StoreError, match="does not answer as it should"):
        Store.open(tmp_path / "notes.db")
    (tmp_path / "text.db").write_text("this is no database, and long enough to be taken for one" * 50)
    with pytest.raises(StoreError, match="not a database"):
        Store.open(tmp_path / "text.db")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(tmp_path / "text.db" / "feedback.db")
