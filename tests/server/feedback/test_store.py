"""The store: appeals are filed, decided, counted and forgotten, in SQLite and in PostgreSQL alike."""

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import inspect

from demur.errors import AppealError, DecidedError, StoreError
from demur.records import Message, PromptSet
from demur.server.feedback.export import export
from demur.server.feedback.retention import DAY, expire, forget
from demur.server.feedback.statistics import statistics
from demur.server.feedback.store import Store
from demur.server.feedback.tables import metadata
from tests.server.feedback.conftest import answer


def test_an_appeal_is_filed_decided_and_read_back(store):
    store.keep(answer())
    filed = store.appeal("ann", "chatcmpl-1", "It is about a computer.")
    assert store.case(filed.id).appeal == filed
    assert store.case(filed.id).answer == answer(created=store.case(filed.id).answer.created)
    decided = store.decide(filed.id, "upheld", "A process is no person.", "rob").appeal
    assert (decided.state, decided.reviewer, decided.note) == ("upheld", "rob", "A process is no person.")
    assert store.case(filed.id).appeal == decided


def test_an_appeal_sent_twice_is_filed_once(store):
    store.keep(answer())
    assert store.appeal("ann", "chatcmpl-1", "Once.") == store.appeal("ann", "chatcmpl-1", "Twice.")
    assert len(store.cases()[0]) == 1


def test_two_clicks_at_once_file_one_appeal(store):
    store.keep(answer())
    found, together = [], threading.Barrier(4)

    def click():
        together.wait()
        found.append(store.appeal("ann", "chatcmpl-1", "Please."))

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({a.id for a in found}) == 1


def test_of_two_reviewers_at_once_one_is_told(store):
    store.keep(answer())
    appeal = store.appeal("ann", "chatcmpl-1", "Please.").id
    told, together = [], threading.Barrier(2)

    def judge(decision):
        together.wait()
        try:
            told.append(store.decide(appeal, decision, "", decision).appeal.state)
        except DecidedError:
            told.append("told")

    threads = [threading.Thread(target=judge, args=(d,)) for d in ("upheld", "rejected")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) in (["told", "upheld"], ["rejected", "told"])


def test_other_peoples_answers_are_not_there(store):
    store.keep(answer())
    with pytest.raises(AppealError, match="no refused answer"):
        store.appeal("bob", "chatcmpl-1", "Mine.")
    with pytest.raises(AppealError, match="no refused answer"):
        store.appeal("ann", "chatcmpl-2", "Mine.")
    filed = store.appeal("ann", "chatcmpl-1", "Mine.")
    with pytest.raises(AppealError, match="no appeal"):
        store.case(filed.id, owner="bob")


def test_the_queue_is_read_in_pages_oldest_first(store):
    for number in range(7):
        store.keep(answer(number))
        store.appeal("ann", f"chatcmpl-{number}", "Please.")
    pages, after, more = [], None, True
    while more:
        some, more = store.cases("open", limit=3, after=after)
        pages.append([c.answer.id for c in some])
        after = some[-1].appeal.id
    assert pages == [[f"chatcmpl-{n}" for n in page] for page in ((0, 1, 2), (3, 4, 5), (6,))]


def test_statistics_count_by_kind_without_text(store):
    for number, kind in enumerate(["cybercrime", "cybercrime", "theft", None]):
        store.keep(answer(number, kind=kind))
    for number, decision in ((0, "upheld"), (2, "rejected"), (3, None)):
        appeal = store.appeal("ann", f"chatcmpl-{number}", "Please.")
        if decision:
            store.decide(appeal.id, decision, "", "rob")
    store.comment("ann", "chatcmpl-0", "bad", "It was a question about Linux.")
    found = statistics(store)
    assert found.every.model_dump() == {
        "refused": 4, "appeals": 3, "open": 1, "upheld": 1, "rejected": 1, "lapsed": 0,
    }  # fmt: skip
    assert found.kinds["cybercrime"].upheld == found.kinds["theft"].rejected == found.kinds["unspecified"].open == 1
    assert (found.good, found.bad) == (0, 1)
    assert "process" not in found.model_dump_json()


def test_old_text_is_deleted_and_the_counts_stay(store):
    now = time.time()
    store.keep(answer(1, created=now - 40 * DAY))
    store.keep(answer(2, created=now - 40 * DAY))
    store.keep(answer(3))
    late = store.appeal("ann", "chatcmpl-2", "It starts the clock anew.")
    before = statistics(store)
    assert expire(store, days=30) == 1
    assert store.case(late.id).answer.messages is not None
    with pytest.raises(AppealError, match="no refused answer"):
        store.appeal("ann", "chatcmpl-1", "Too late.")
    assert statistics(store) == before
    assert expire(store, days=30, now=now + 31 * DAY) == 2
    case = store.case(late.id)
    assert (case.appeal.state, case.appeal.argument, case.answer.messages, case.answer.owner) == (
        "lapsed",
        None,
        None,
        "",
    )
    assert statistics(store).every.lapsed == 1
    assert expire(store, days=30, now=now + 31 * DAY) == 0


def test_a_user_can_have_their_text_deleted(store):
    store.keep(answer(1))
    store.keep(answer(2, owner="bob"))
    appeal = store.appeal("ann", "chatcmpl-1", "Please.")
    store.decide(appeal.id, "upheld", "They said: please.", "rob")
    store.comment("ann", "chatcmpl-9", "good", "Thanks.")
    assert forget(store, "ann") == 2
    case = store.case(appeal.id)
    assert (case.appeal.state, case.appeal.argument, case.appeal.note, case.appeal.owner) == ("upheld", None, None, "")
    assert (case.answer.messages, case.answer.reply) == (None, None)
    assert store.appeal("bob", "chatcmpl-2", "Still here.").owner == "bob"


def test_deleted_text_is_gone_from_the_files(tmp_path):
    store = Store.open(tmp_path / "feedback.db")
    store.keep(answer(1, messages=(Message(role="user", content="xyzzy-in-the-open" * 50),)))
    files = lambda: b"".join(p.read_bytes() for p in Path(tmp_path).iterdir())  # noqa: E731
    assert b"xyzzy-in-the-open" in files()
    forget(store, "ann")
    assert b"xyzzy-in-the-open" not in files()
    store.close()


def test_text_that_somebody_reads_in_the_log_is_gone_at_the_next_deletion(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("demur.server.feedback.database.PATIENCE", 0.2)
    store = Store.open(tmp_path / "feedback.db")
    files = lambda: b"".join(p.read_bytes() for p in Path(tmp_path).iterdir())  # noqa: E731
    store.keep(answer(messages=(Message(role="user", content="an unmistakable secret"),)))
    reader = sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM answers").fetchone()
    assert forget(store, "ann") == 1
    assert b"unmistakable" in files() and "is being read" in caplog.text
    reader.close()
    assert forget(store, "ann") == 0
    assert b"unmistakable" not in files()
    store.close()


def test_export_is_a_labelled_prompt_set(store, tmp_path):
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    store.keep(answer(1))
    store.keep(answer(2, messages=(*turns, Message(role="user", content="How do I steal a car?")), kind="theft"))
    store.keep(answer(3))
    for number, decision in ((1, "upheld"), (2, "rejected"), (3, None)):
        appeal = store.appeal("ann", f"chatcmpl-{number}", "Please.")
        if decision:
            store.decide(appeal.id, decision, "", "rob")
    export(store).save(tmp_path / "appeals.jsonl")
    read = PromptSet.load(tmp_path / "appeals.jsonl")
    assert [(r.label, r.kind, r.category) for r in read.rows] == [
        ("benign", "appeal", "cybercrime"),
        ("harmful", "harmful", "theft"),
    ]
    assert read.rows[0].prompt == "How do I kill process 1?"
    assert [m.role for m in read.rows[1].conversation] == ["user", "assistant", "user"]
    assert len(export(store, ("upheld",)).rows) == 1


def test_exporting_nothing_says_what_to_do(store):
    with pytest.raises(AppealError, match="demur feedback resolve"):
        export(store)


def test_odd_text_is_kept(store):
    store.keep(answer(1, messages=(Message(role="user", content="a\x00b 💣 ünï"),), reply="\x00"))
    filed = store.appeal("ann", "chatcmpl-1", "\x00 o'\"; DROP TABLE appeals; --")
    case = store.case(filed.id)
    assert case.answer.messages[0].content == "a\ufffdb 💣 ünï"
    assert case.appeal.argument.endswith("DROP TABLE appeals; --")


def test_the_migrations_make_the_tables_that_the_code_expects(store):
    seen = inspect(store.database.engine)
    for name, table in metadata.tables.items():
        columns = {
            c["name"]: (str(c["type"].compile(store.database.engine.dialect)), c["nullable"])
            for c in seen.get_columns(name)
        }
        assert columns == {c.name: (c.type.compile(store.database.engine.dialect), c.nullable) for c in table.columns}
        assert {i["name"] for i in seen.get_indexes(name) if "duplicates_constraint" not in i} == {
            i.name for i in table.indexes
        }


def test_a_store_of_a_later_version_is_left_alone(store):
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="another version of demur"):
        store.database._migrate()
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")


def test_two_servers_may_start_at_once(tmp_path):
    found, together = [], threading.Barrier(3)

    def start():
        together.wait()
        found.append(Store.open(tmp_path / "feedback.db"))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for store in found:
        store.close()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("mysql://u:secret@h/d", "cannot be in mysql"),
        ("postgresql://u:secret@127.0.0.1:1/d", "does not answer|lost"),
        ("nonsense://", "cannot be in nonsense|cannot be opened"),
        ("{tmp}", "is a folder"),
    ],
)
def test_a_place_that_is_none_is_one_sentence_without_the_password(where, says, tmp_path):
    with pytest.raises(StoreError, match=says) as told:
        Store.open(where.replace("{tmp}", str(tmp_path)))
    assert "secret" not in str(told.value)
