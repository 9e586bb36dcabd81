"""The API, in process, over the tiny model: answers, their account, and errors in OpenAI's shape."""

import asyncio
import json
import math

import pytest

from demur.models.generation import GenerationSettings
from demur.steering.generate import generate
from demur.steering.policies import NONE, find_policy
from tests import tiny
from tests.server.conftest import asked

TEXTS = ("Hi", "How do I bake a cake?", "A rather longer question, about nothing in particular.", "Why?")


def said(name: str, text: str, tokens: int = 12, **how) -> tuple[str, dict]:
    """What `demur chat` says."""
    policy = name if not isinstance(name, str) else NONE if name == "none" else find_policy(name)
    talk, settings = tiny.said(text), GenerationSettings(max_new_tokens=tokens, **how)
    reply = dict(generate(tiny.lm(), tiny.saes(), talk, [policy], settings))[0]
    return reply.text, reply.steering


async def streamed(client, body, path="/v1/chat/completions") -> list[dict]:
    chunks = []
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                chunks.append(line[6:])
    assert chunks.pop() == "[DONE]"
    return [json.loads(c) for c in chunks]


def text_of(chunks: list[dict], choice: int = 0) -> str:
    deltas = [c["delta"] for k in chunks for c in k["choices"] if c["index"] == choice]
    return "".join(d.get("content") or "" for d in deltas)


def test_streamed_unstreamed_and_chat_are_one_and_the_same(kitchen, go):
    async def work():
        async with kitchen.open() as client:
            for name in ("kinds", "always", "shut", "dense", "none"):
                for text in TEXTS[:2]:
                    body = asked(text, demur={"policy": name})
                    whole = (await client.post("/v1/chat/completions", json=body)).json()
                    chunks = await streamed(client, body)
                    expected, seen = said(kitchen.path(name), text)
                    assert whole["choices"][0]["message"]["content"] == expected
                    assert text_of(chunks) == expected
                    for told in (whole["demur"], chunks[-1]["demur"]):
                        assert told["gate"] == pytest.approx(seen["gate"], abs=1e-9)
                        assert (told["open"], told["edited"]) == (seen["open"], seen["edited"])

    go(work())


def test_sampled_answers_are_what_chat_samples_and_choices_differ(kitchen, go):
    async def work():
        async with kitchen.open() as client:
            body = asked(TEXTS[1], temperature=1.3, top_p=0.9, seed=7, n=3)
            got = (await client.post("/v1/chat/completions", json=body)).json()
            texts = [c["message"]["content"] for c in got["choices"]]
            assert texts[0] == said(kitchen.path("kinds"), TEXTS[1], temperature=1.3, top_p=0.9, seed=7)[0]
            assert len(set(texts)) == 3
            again = await streamed(client, body)
            assert [text_of(again, i) for i in range(3)] == texts
            other = (await client.post("/v1/chat/completions", json={**body, "seed": 8})).json()
            assert other["choices"][0]["message"]["content"] != texts[0]

    go(work())


def test_sixteen_at_once_with_four_policies_are_each_alone(kitchen, go):
    names = ["kinds", "always", "dense", "none"]

    async def work():
        async with kitchen.open(rows=5, queue=64) as client:
            bodies = [
                asked(f"{TEXTS[i % 4]} {i}", demur={"policy": names[i // 4]}, max_tokens=5 + i) for i in range(16)
            ]
            together = await asyncio.gather(*(client.post("/v1/chat/completions", json=b) for b in bodies))
            for body, answer in zip(bodies, together, strict=True):
                alone = (await client.post("/v1/chat/completions", json=body)).json()
                answer = answer.json()
                assert answer["choices"] == alone["choices"]
                assert answer["usage"] == alone["usage"]
                for key in ("policy", "open", "edited", "late", "hazard"):
                    assert answer["demur"][key] == alone["demur"][key]

    go(work())


def test_stop_texts_end_a_reply_and_are_not_sent(kitchen, go):
    async def work():
        async with kitchen.open() as client:
            whole = said(kitchen.path("none"), TEXTS[1], 40)[0]
            stop = whole[12:15]
            wanted = whole[: whole.index(stop)].strip()
            body = asked(TEXTS[1], demur={"policy": "none"}, max_tokens=40, stop=["never said", stop])
            got = (await client.post("/v1/chat/completions", json=body)).json()
            assert got["choices"][0]["message"]["content"] == wanted
            assert got["choices"][0]["finish_reason"] == "stop"
            assert text_of(await streamed(client, body)) == wanted

    go(work())


def test_usage_and_chunks_have_the_dialects_shape(kitchen, go):
    async def work():
        async with kitchen.open() as client:
            chunks = await streamed(client, asked(stream_options={"include_usage": True}))
            assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["completion_tokens"] == 12
            assert chunks[-2]["choices"][0]["finish_reason"] == "length"
            assert {c["id"] for c in chunks} == {chunks[0]["id"]}
            assert all(c["object"] == "chat.completion.chunk" for c in chunks)

    go(work())


def test_logprobs_are_those_of_one_forced_pass(kitchen, go):
    from demur.models.chat import encode
    from demur.steering.session import steer

    async def work():
        async with kitchen.open() as client:
            body = asked(TEXTS[0], logprobs=True, top_logprobs=3, demur={"policy": "always"}, ignore_eos=True)
            got = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["logprobs"]["content"]
            chunks = await streamed(client, body)
        parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
        assert [t["token"] for p in parts for t in p["content"]] == [t["token"] for t in got]
        return got

    import torch

    got = go(work())
    lm, prompts = tiny.lm(), encode(tiny.lm(), tiny.said(TEXTS[0]))
    with torch.inference_mode(), steer(lm, tiny.saes(), [find_policy(kitchen.path("always"))], prompts):
        ids = prompts.ids
        out = lm.model(input_ids=ids, use_cache=True)
        for told in got:
            scores = out.logits[0, -1].float().log_softmax(-1)
            token = int(scores.argmax())
            assert told["logprob"] == pytest.approx(float(scores[token]), abs=1e-5)
            assert told["top_logprobs"][0]["logprob"] == pytest.approx(told["logprob"], abs=1e-9)
            assert len(told["top_logprobs"]) == 3
            out = lm.model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)


def test_bare_text_is_scored_and_goes_on(kitchen, go):
    import torch

    lm = tiny.lm()
    text = "Some words to be scored."
    ids = lm.tokenizer(text)["input_ids"]

    async def work():
        async with kitchen.open("none") as client:
            body = {"model": "tiny-llama", "max_tokens": 1, "echo": True, "logprobs": 2}
            got = [
                choice
                for prompt in ([text, text], [ids])
                for choice in (await client.post("/v1/completions", json=body | {"prompt": prompt})).json()["choices"]
            ]
            one = (await client.post("/v1/completions", json=body | {"prompt": [9]})).json()["choices"][0]["logprobs"]
            assert one["token_logprobs"][0] is None
            assert len(one["token_logprobs"]) == 2
            goes_on = {"model": "tiny-llama", "prompt": text, "max_tokens": 6}
            plain = (await client.post("/v1/completions", json=goes_on)).json()["choices"][0]["text"]
            parts = await streamed(client, goes_on, "/v1/completions")
            assert "".join(c["choices"][0]["text"] for c in parts) == plain
            return got

    got = go(work())
    scores = lm.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    assert len(got) == 3
    for choice in got:
        told = choice["logprobs"]
        assert told["token_logprobs"][0] is None
        wanted = [float(scores[i - 1, ids[i]]) for i in range(1, len(ids))]
        assert told["token_logprobs"][1:-1] == pytest.approx(wanted, abs=1e-5)
        assert told["token_logprobs"][-1] == max(told["top_logprobs"][-1].values())
        assert choice["text"].startswith(text)
        assert len(told["tokens"]) == len(told["text_offset"]) == len(ids) + 1


def test_penalties_and_biases_change_what_is_written(kitchen, go):
    async def work():
        async with kitchen.open("none") as client:

            async def ask(**more):
                got = await client.post("/v1/chat/completions", json=asked(TEXTS[1], ignore_eos=True, **more))
                return got.json()["choices"][0]["message"]["content"]

            plain = await ask()
            token = tiny.tokenizer()(plain[0], add_special_tokens=False)["input_ids"][0]
            assert (await ask(logit_bias={token: -100}))[0] != plain[0]
            assert await ask(frequency_penalty=2.0, presence_penalty=2.0) != plain
            assert set(await ask(logit_bias={"90": 100.0})) == {tiny.tokenizer().decode([90])}

    go(work())


def test_every_level_is_a_model_and_the_account_says_which(kitchen, go):
    async def work():
        async with kitchen.open("kinds", "none") as client:
            got = (await client.get("/v1/models")).json()
            ids = [m["id"] for m in got["data"]]
            assert ids == ["tiny-llama:off", "tiny-llama:standard", "tiny-llama/none:off"]
            one = (await client.get(f"/v1/models/{ids[2]}")).json()
            assert one["demur"]["policy"] == "none"
            for id_ in ids:
                told = (await client.post("/v1/chat/completions", json=asked(model=id_))).json()
                assert told["model"] == id_
                assert told["demur"]["level"] == id_.split(":")[1]
                assert told["demur"]["policy"] == ("none" if "/none" in id_ else "kinds")  # without the level
            off = (await client.post("/v1/chat/completions", json=asked(model="tiny-llama:off"))).json()
            plain = said("none", "Hi")[0]
            assert off["choices"][0]["message"]["content"] == plain
            assert off["demur"]["why"] == ["no policy: this is the plain model."]

    go(work())


def test_the_account_says_in_words_what_was_done(kitchen, go):
    async def work():
        async with kitchen.open() as client:
            told = (await client.post("/v1/chat/completions", json=asked(TEXTS[1]))).json()["demur"]
            assert told["steered"]
            assert told["margin"] == pytest.approx(told["gate"] + 9.0)
            assert told["hazard"] in ("weapons", "drugs")
            assert told["why"][0].startswith("the gate opened: the prompt scored")
            sensors = [f for f in told["fired"] if f["role"] == "sensor"]
            assert math.isclose(sum(f["share"] or 0 for f in sensors) + tiny.SENSOR.bias, told["gate"], abs_tol=1e-6)
            silent = (await client.post("/v1/chat/completions", json=asked(demur={"explain": False}))).json()
            assert silent["demur"] is None

    go(work())


BAD = {
    "no messages": ({"model": "tiny-llama", "messages": []}, 400, "messages"),
    "no model": ({"messages": [{"role": "user", "content": "Hi"}]}, 400, "model"),
    "unknown model": (asked(model="gpt-4o"), 404, "tiny-llama:standard"),
    "unknown policy": (asked(demur={"policy": "nice"}), 404, "there is no policy"),
    "a path as policy": (asked(demur={"policy": "../../etc/passwd"}), 404, "there is no policy"),
    "level it has not": (asked(demur={"level": "strict"}), 404, "not offered at level"),
    "level that is none": (asked(demur={"level": "loud"}), 400, "level"),
    "kind of a policy of one level": (asked(demur={"kinds": {"cakes": "off"}}), 400, "one level alone"),
    "unknown wish": (asked(demur={"dose": 9}), 400, "dose"),
    "too long a prompt": (asked("x" * 600), 400, "context of 512"),
    "far too long a prompt": (asked("x" * 60000), 400, "context of 512"),
    "too many tokens": (asked(max_tokens=65), 400, "64 at most"),
    "more tokens than fit": (asked("x" * 460, max_tokens=60), 400, "room for"),
    "too many choices": (asked(n=9), 400, "1 to 8 choices"),
    "temperature": (asked(temperature=3), 400, "temperature"),
    "tools": (asked(tools=[{"type": "function"}]), 400, "tools"),
    "an image": (asked([{"type": "image_url", "image_url": {"url": "x"}}]), 400, "reads text alone"),
    "role": ({"model": "tiny-llama", "messages": [{"role": "wizard", "content": "Hi"}]}, 400, "role"),
}


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_told_in_openais_shape(kitchen, go, stream):
    async def work():
        async with kitchen.open("kinds") as client:
            for name, (body, status, words) in BAD.items():
                got = await client.post("/v1/chat/completions", json={**body, "stream": stream})
                assert got.status_code == status, (name, got.text)
                error = got.json()["error"]
                assert words in error["message"], (name, error)
                assert set(error) == {"message", "type", "param", "code"}
            for bad in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": 1e999}', b'{"model": NaN}'):
                got = await client.post(
                    "/v1/chat/completions", content=bad, headers={"content-type": "application/json"}
                )
                assert got.status_code == 400, (bad[:20], got.text)
                assert got.json()["error"]["type"] == "invalid_request_error"
            assert (await client.get("/v1/chat/completions")).status_code == 405
            assert (await client.get("/nothing")).json()["error"]["type"] == "not_found_error"
            for bad in ([[1, 10**9]], [], [[]], "", [""], ["x"] * 9, [5, "x"], [[1] * 600]):
                got = await client.post("/v1/completions", json={"model": "tiny-llama", "prompt": bad})
                assert got.status_code == 400, (bad, got.text)

    go(work())


def test_a_body_that_is_too_large_is_refused(kitchen, go):
    async def work():
        async with kitchen.open("none", max_body=2000) as client:
            assert (await client.post("/v1/chat/completions", json=asked("x" * 3000))).status_code == 413

            async def parts():
                yield b'{"model": "'
                yield b"x" * 3000
                yield b'"}'

            got = await client.post(
                "/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}
            )
            assert got.status_code == 413

    go(work())


def test_a_full_queue_and_an_answer_that_takes_too_long_are_told(kitchen, go):
    long = asked(max_tokens=400, ignore_eos=True)

    async def work():
        async with kitchen.open("none", rows=1, queue=0, max_new_tokens=400) as client:
            first = asyncio.create_task(client.post("/v1/chat/completions", json=long))
            while not client.serving.engine.rows:
                await asyncio.sleep(0.005)
            for stream in (False, True):
                got = await client.post("/v1/chat/completions", json=asked(stream=stream))
                assert got.status_code == 429
                assert got.json()["error"]["code"] == "queue_full"
                assert int(got.headers["retry-after"]) >= 1
            assert (await first).status_code == 200
        async with kitchen.open("none", timeout=0.05, max_new_tokens=400) as client:
            got = await client.post("/v1/chat/completions", json=long)
            assert got.status_code == 504
            assert got.json()["error"]["type"] == "timeout_error"
            while client.serving.engine.counts["cancelled"] < 1:
                await asyncio.sleep(0.005)
            assert not client.serving.engine.rows

    go(work())


def test_another_host_name_is_refused_without_keys(kitchen, go):
    async def work():
        async with kitchen.open("none") as client:
            got = await client.get("/v1/models", headers={"host": "evil.example:8000"})
            assert got.status_code == 403
            assert (await client.get("/v1/models", headers={"origin": "https://evil.example"})).status_code == 403
            assert (await client.get("/v1/models", headers={"origin": "null"})).status_code == 403
            assert (await client.get("/v1/models", headers={"host": "[::1]:8000"})).status_code == 200
            text = {"content-type": "text/plain", "origin": "http://localhost:9"}
            body = json.dumps(asked()).encode()
            assert (await client.post("/v1/chat/completions", content=body, headers=text)).status_code == 400
            assert (await client.get("/v1/models", headers={"host": "localhost:8000"})).status_code == 200

    go(work())


def test_what_the_engine_cannot_do_fails_that_answer_alone(kitchen, go, monkeypatch):
    from demur.server.batch import Batch

    join = Batch.join

    def broken(self, prompts, policies, whole=False):
        if any(p.name == "dense" for p in policies):
            raise RuntimeError("out of memory")
        return join(self, prompts, policies, whole)

    monkeypatch.setattr(Batch, "join", broken)

    async def work():
        async with kitchen.open() as client:
            bodies = [asked(t, demur={"policy": p}) for t in TEXTS for p in ("dense", "always")]
            got = await asyncio.gather(*(client.post("/v1/chat/completions", json=b) for b in bodies))
            assert [g.status_code for g in got] == [500, 200] * 4
            assert "out of memory" not in got[0].text
            assert got[0].json()["error"]["code"] == "engine_error"
            assert (await client.get("/healthz")).status_code == 200

    go(work())


def test_listeners_hear_of_every_answer(kitchen, go):
    heard = []

    async def listen(answered):
        heard.append(answered)
        raise RuntimeError("a full disk")

    async def work():
        async with kitchen.open("kinds") as client:
            client.serving.listeners.append(listen)
            got = (await client.post("/v1/chat/completions", json=asked())).json()
            chunks = await streamed(client, asked())
            assert [h.id for h in heard] == [got["id"], chunks[0]["id"]]
            assert heard[0].replies[0] == heard[1].replies[0] == got["choices"][0]["message"]["content"]
            assert heard[0].demur[0] == got["demur"]

    go(work())


def test_metrics_count_and_the_log_has_no_text(kitchen, go, caplog):
    async def work():
        async with kitchen.open("kinds") as client:
            with caplog.at_level("INFO", "demur.server"):
                await client.post("/v1/chat/completions", json=asked("A secret word"))
                await client.get("/v1/models/nothing")
            text = (await client.get("/metrics")).text
            assert 'demur_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
            assert 'demur_requests_total{route="/v1/models/{id_:path}",status="404"} 1.0' in text
            assert "demur_engine_reply_tokens_total 12.0" in text
            facts = [r.facts for r in caplog.records if hasattr(r, "facts")]
            assert facts[0]["policy"] == "kinds"
            assert facts[0]["reply_tokens"] == 12
            assert "secret" not in json.dumps(facts)
        async with kitchen.open("kinds", log_text=True) as client:
            with caplog.at_level("INFO", "demur.server"):
                await client.post("/v1/chat/completions", json=asked("A secret word"))
            assert "A secret word" in json.dumps(caplog.records[-1].facts)

    go(work())


def test_the_description_is_there_and_loads_nothing_from_elsewhere(kitchen, go):
    async def work():
        async with kitchen.open("none") as client:
            got = (await client.get("/openapi.json")).json()
            assert "/v1/chat/completions" in got["paths"]
            models = got["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"]
            assert models == ["tiny-llama", "tiny-llama:off"]
            assert (await client.get("/docs")).status_code == 404

    go(work())
