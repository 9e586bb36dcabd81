"""Feedback and appeals over HTTP: who may do what, and errors as OpenAI's clients read them."""

import asyncio
import hashlib
import time

import pytest

pytest.importorskip("fastapi", reason="the extra `server` is not installed")
from fastapi.testclient import TestClient

from demur.records import Message
from demur.server.answers import Answered
from demur.server.app import create_app
from demur.server.feedback.retention import DAY
from demur.server.feedback.routes import feedback_router, keeping
from demur.server.feedback.store import Store
from demur.server.keys import Key, Keys
from tests.server.feedback.conftest import answer

ROLES = {"ann": "user", "bob": "user", "rob": "reviewer", "op": "operator"}


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-{name}"}


@pytest.fixture
def kept(tmp_path):
    return Store.open(tmp_path / "feedback.db")


@pytest.fixture
def client(kept, kitchen):
    hashed = [Key(name=n, role=r, sha256=hashlib.sha256(f"key-{n}".encode()).hexdigest()) for n, r in ROLES.items()]
    app = create_app(kitchen.serving("none", keys=Keys(keys=tuple(hashed))), [feedback_router(kept, 30)])
    with TestClient(app) as made:
        yield made


def test_from_refusal_to_decision(client, kept):
    kept.keep(answer())
    sent = {"answer": "chatcmpl-1", "argument": "It is about a computer."}
    filed = client.post("/v1/appeals", json=sent, headers=as_("ann"))
    assert filed.status_code == 201
    assert client.post("/v1/appeals", json=sent, headers=as_("ann")).json() == filed.json()
    queue = client.get("/v1/appeals?state=open", headers=as_("rob")).json()
    assert [a["id"] for a in queue["data"]] == [filed.json()["id"]]
    assert queue["data"][0]["messages"][0]["content"] == "How do I kill process 1?"
    where = f"/v1/appeals/{filed.json()['id']}"
    said = {"decision": "upheld", "note": "A process is no person."}
    assert client.post(f"{where}/decision", json=said, headers=as_("rob")).json()["state"] == "upheld"
    seen = client.get(where, headers=as_("ann")).json()
    assert (seen["state"], seen["note"], seen["reviewer"]) == ("upheld", "A process is no person.", None)
    again = client.post(f"{where}/decision", json={"decision": "rejected"}, headers=as_("rob"))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_decided")
    assert client.get("/v1/appeals/statistics").json()["kinds"]["cybercrime"]["upheld"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "who", "status"),
    [
        ("GET", "/v1/appeals", None, "ann", 403),
        ("GET", "/v1/appeals", None, None, 401),
        ("POST", "/v1/appeals/{id}/decision", {"decision": "upheld"}, "ann", 403),
        ("GET", "/v1/appeals/{id}", None, "bob", 404),
        ("GET", "/v1/appeals/{id}", None, "rob", 200),
        ("POST", "/v1/appeals", {"answer": "chatcmpl-1", "argument": "Mine."}, "bob", 404),
        ("POST", "/v1/appeals", {"answer": "chatcmpl-9", "argument": "Mine."}, "ann", 404),
        ("POST", "/v1/appeals", {"answer": "chatcmpl-1"}, "ann", 400),
        ("POST", "/v1/appeals", {"answer": "../../etc", "argument": "x"}, "ann", 400),
        ("POST", "/v1/appeals", {"answer": "chatcmpl-1", "argument": "x" * 5000}, "ann", 400),
        ("POST", "/v1/appeals", {"answer": "chatcmpl-1", "argument": "x", "state": "upheld"}, "ann", 400),
        ("GET", "/v1/appeals/%00", None, "rob", 400),
        ("GET", "/v1/appeals?after=appeal-9", None, "rob", 404),
        ("GET", "/v1/appeals?limit=0", None, "rob", 400),
        ("POST", "/v1/appeals/{id}/decision", {"decision": "maybe"}, "rob", 400),
        ("POST", "/v1/feedback", {"answer": "chatcmpl-1", "rating": "good"}, "ann", 201),
        ("POST", "/v1/feedback", {"answer": "chatcmpl-1", "rating": "fine"}, "ann", 400),
        ("DELETE", "/v1/feedback?owner=bob", None, "ann", 403),
        ("DELETE", "/v1/feedback?owner=ann", None, "op", 200),
    ],
)  # fmt: skip
def test_who_may_do_what(client, kept, method, path, body, who, status):
    kept.keep(answer())
    mine = kept.appeal("ann", "chatcmpl-1", "Please.").id
    found = client.request(method, path.replace("{id}", mine), json=body, headers=as_(who) if who else {})
    assert found.status_code == status, found.text
    if status >= 400:
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_a_user_deletes_their_text(client, kept):
    kept.keep(answer())
    appeal = kept.appeal("ann", "chatcmpl-1", "Please.").id
    assert client.delete("/v1/feedback", headers=as_("ann")).json()["answers_and_comments"] == 1
    assert client.get(f"/v1/appeals/{appeal}", headers=as_("rob")).json()["messages"] is None
    assert client.get("/v1/appeals/statistics").json()["every"]["appeals"] == 1


def test_a_store_that_is_gone_is_503_and_comes_back(client, kept):
    kept.keep(answer())
    with kept.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE appeals RENAME TO elsewhere")
    sent = {"answer": "chatcmpl-1", "argument": "Please."}
    gone = client.post("/v1/appeals", json=sent, headers=as_("ann"))
    assert (gone.status_code, gone.json()["error"]["code"], gone.headers["Retry-After"]) == (
        503,
        "store_unavailable",
        "2",
    )
    with kept.database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO appeals")
    assert client.post("/v1/appeals", json=sent, headers=as_("ann")).status_code == 201


def test_text_goes_when_its_time_is_up(kept, kitchen):
    kept.keep(answer(1, created=time.time() - 31 * DAY))
    app = create_app(kitchen.serving("none"), [feedback_router(kept, 30)])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        deadline = time.monotonic() + 10
        sent = {"answer": "chatcmpl-1", "argument": "Please."}
        # The sweep runs as the app starts.
        while _reply(kept) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.post("/v1/appeals", json=sent).status_code == 404


def test_only_steered_answers_are_kept(kept):
    plain = Answered(
        id="chatcmpl-1", created=int(time.time()), caller="ann", model="m:standard", policy="gated", policy_hash="0",
        level="standard", messages=(Message(role="user", content="Hi"),), replies=("Hello",), demur=({"steered": False},),
    )  # fmt: skip
    steered = plain.model_copy(
        update={"id": "chatcmpl-2", "demur": ({"steered": True, "gate": 1.5, "hazard": "theft"},)}
    )
    hear = keeping(kept, 30)
    for answered in (plain, steered):
        asyncio.run(hear(answered))
    asyncio.run(keeping(kept, 0)(steered.model_copy(update={"id": "chatcmpl-3"})))
    assert kept.appeal("ann", "chatcmpl-2", "Please.").answer == "chatcmpl-2"
    for other in ("chatcmpl-1", "chatcmpl-3"):
        with pytest.raises(Exception, match="no refused answer"):
            kept.appeal("ann", other, "Please.")


def _reply(store: Store) -> str | None:
    with store.database.reading() as connection:
        return connection.exec_driver_sql("SELECT reply FROM answers").scalar()
