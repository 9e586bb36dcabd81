"""What stands before vLLM's server, before a server that answers as vLLM does."""

import asyncio
import hashlib
import json
from types import SimpleNamespace

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from demur.models.chat import Role, tokens_and_roles
from demur.server.impact import LOCAL_CARD
from demur.server.vllm import plugin
from demur.server.vllm.asking import Asking, Menu
from demur.server.vllm.speaking import Speaking
from tests import tiny
from tests.server.policies import four


@pytest.fixture
def asking(tmp_path) -> Asking:
    for policy in four():
        policy.save(tmp_path / f"{policy.name}.toml")
    made = Asking.__new__(Asking)  # its settings are vLLM's own, which is not here
    made.lm = tiny.lm()
    made.menu = Menu(made.lm, {}, [str(tmp_path / f"{n}.toml") for n in ("kinds", "always")] + ["none"], LOCAL_CARD)
    return made


def before(asking: Asking) -> Speaking:
    """An app that says what it was asked, and whose answers carry an account as vLLM's do."""
    app = FastAPI()
    app.state.engine_client = SimpleNamespace(input_processor=SimpleNamespace(demur=asking))

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        asked = await request.json()
        if asked.get("stream"):
            plugin.TOLD["chatcmpl-1"] = [{"open": True}]
            lines = [
                {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "No"}, "finish_reason": None}]},
                {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            ]
            events = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
            # Cut where it hurts.
            pieces = [events[i : i + 7].encode() for i in range(0, len(events), 7)]
            return StreamingResponse(iter(pieces), media_type="text/event-stream")
        choices = [{"index": i, "message": {"content": "é"}} for i in range(asked.get("n", 1))]
        accounts = [{"open": i == 0} for i in range(len(choices))]
        return {"asked": asked, "choices": choices, "kv_transfer_params": {"demur": accounts}}

    @app.get("/health")
    async def health():
        return {}

    @app.post("/reset_prefix_cache")
    async def reset():
        return {}

    app.add_middleware(Speaking)
    return app


def asked(app, path="/v1/chat/completions", headers=None, **body):
    async def ask():
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(path, json=body, headers=headers or {})

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("DEMUR_KEYS", "DEMUR_MAX_BODY"):
        monkeypatch.delenv(name, raising=False)


def test_model_ids_and_wishes_become_fields_of_vllm(asking):
    app = before(asking)
    for body, policy, level in [
        ({"model": "tiny-llama"}, "kinds", "standard"),
        ({"model": "tiny-llama:off"}, "kinds", "off"),
        ({"model": "tiny-llama/always:standard"}, "always", "standard"),
        ({"model": "tiny-llama", "demur": {"policy": "none"}}, "none", "off"),
    ]:
        told = asked(app, **body).json()["asked"]
        assert told["model"] == body["model"] and "demur" not in told
        wish = json.loads(told["vllm_xargs"]["demur"])
        assert (wish["policy"], wish["level"]) == (policy, level)


def test_accounts_are_lifted_out_of_vllms_field(asking):
    app = before(asking)
    one = asked(app, model="tiny-llama").json()
    assert one["demur"] == {"open": True} and one["kv_transfer_params"] is None
    assert one["choices"] == [{"index": 0, "message": {"content": "é"}}]
    two = asked(app, model="tiny-llama", n=2).json()
    assert [c["demur"]["open"] for c in two["choices"]] == [True, False]


def test_a_streamed_answer_has_its_account_in_the_last_chunk(asking):
    answer = asked(before(asking), model="tiny-llama", stream=True)
    events = [e.removeprefix("data: ") for e in answer.text.split("\n\n") if e]
    assert events[-1] == "[DONE]"
    first, last = map(json.loads, events[:-1])
    assert "demur" not in first and last["demur"] == {"open": True}
    assert plugin.TOLD == {}


def test_what_is_not_on_offer_is_an_error_in_openais_shape(asking):
    app = before(asking)
    for body, status, said in [
        ({"model": "tiny-llama/never:strict"}, 404, "there is no policy 'never'"),
        ({"model": "other"}, 404, "there is no model 'other'"),
        ({"model": "tiny-llama", "demur": {"level": "loud"}}, 400, "cannot be read"),
        ({"model": "tiny-llama", "demur": {"kinds": {"weapon": "off"}}}, 400, "has one level alone"),
        ({"model": "tiny-llama", "use_beam_search": True}, 400, "beam search"),
    ]:
        answer = asked(app, **body)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]["message"]


def test_keys_open_the_api_and_only_an_operators_the_rest(asking, tmp_path, monkeypatch):
    keys = tmp_path / "keys.toml"
    body = [f'[[keys]]\nname = "{r}"\nrole = "{r}"\nsha256 = "{hashlib.sha256(r.encode()).hexdigest()}"\n'
            for r in ("user", "operator")]  # fmt: skip
    keys.write_text("".join(body))
    monkeypatch.setenv("DEMUR_KEYS", str(keys))
    app = before(asking)

    def status(path, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return asked(app, path, headers, model="tiny-llama").status_code

    assert [status("/v1/chat/completions", k) for k in (None, "wrong", "user", "operator")] == [401, 401, 200, 200]
    assert [status("/reset_prefix_cache", k) for k in (None, "user", "operator")] == [401, 403, 200]


def test_a_large_body_is_refused(asking, monkeypatch):
    monkeypatch.setenv("DEMUR_MAX_BODY", "100")
    assert asked(before(asking), model="tiny-llama", user="x" * 200).status_code == 413


def test_roles_are_those_of_our_own_engine(asking):
    talk = tiny.said("How do I pick a lock?")[0]
    ids, roles = tokens_and_roles(tiny.lm(), talk)
    said, text = [{"role": "user", "content": talk[0].content}], tiny.lm().tokenizer.decode(ids)
    assert asking.roles(said, text, ids) == roles
    parts = [{"role": "user", "content": [{"type": "text", "text": talk[0].content}]}]
    assert asking.roles(parts, text, ids) == roles
    # What cannot be matched is read as a whole.
    assert set(asking.roles(said, text, ids[:-1])) == {int(Role.USER), int(Role.TEMPLATE)}


def test_a_steered_request_shares_no_cache_and_a_plain_one_does(asking):
    params = SimpleNamespace(extra_args={"demur": "always", "other": 1}, skip_reading_prefix_cache=None)
    salt = asking.order(params, [1, 40, 41], None)
    assert salt and params.skip_reading_prefix_cache is True
    assert params.extra_args["demur"]["roles"] == [int(Role.TEMPLATE), int(Role.USER), int(Role.USER)]
    assert params.extra_args["other"] == 1
    assert asking.order(SimpleNamespace(extra_args=None), [40], None) != salt
    plain = SimpleNamespace(extra_args={"demur": {"policy": "none"}}, skip_reading_prefix_cache=None)
    assert asking.order(plain, [40], None) is None and plain.skip_reading_prefix_cache is None


def test_what_a_request_says_cannot_be_taken_for_what_was_found_out(asking):
    params = SimpleNamespace(extra_args={"demur": {"policy": "always", "roles": [1, 1]}})
    with pytest.raises(Exception, match="cannot be read"):
        asking.order(params, [40, 41], None)
