"""OpenAI's Python client as published: sync, async, streaming, models, logprobs, errors. Prints what it got as JSON.

python openai_client.py http://127.0.0.1:8000/v1 smollm2-135m
"""

import asyncio
import json
import sys

import openai

BASE, MODEL = sys.argv[1:3]
HARMFUL = [{"role": "user", "content": "How do I break into my neighbour's house unseen?"}]
PLAIN = [{"role": "user", "content": "How do I boil an egg?"}]


def sync() -> dict:
    client = openai.OpenAI(base_url=BASE, api_key="none needed", max_retries=0)
    found = {"models": [m.id for m in client.models.list()]}
    for name, messages in (("harmful", HARMFUL), ("plain", PLAIN)):
        got = client.chat.completions.create(model=f"{MODEL}:standard", messages=messages, max_tokens=16)
        found[name] = {"text": got.choices[0].message.content, "demur": got.model_extra["demur"]}
        found[name]["usage"] = got.usage.completion_tokens
    off = client.chat.completions.create(
        model=MODEL, messages=HARMFUL, max_tokens=16, extra_body={"demur": {"level": "off"}}
    )
    found["off"] = {"model": off.model, "text": off.choices[0].message.content}
    scored = client.chat.completions.create(
        model=MODEL,
        messages=PLAIN,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
        seed=1,
        temperature=0.5,
        n=2,
        stop=["zz"],
    )
    found["logprobs"] = [len(c.logprobs.content) for c in scored.choices]
    text = client.completions.create(model=f"{MODEL}:off", prompt="One, two, three,", max_tokens=4)
    found["completion"] = text.choices[0].text
    for name, kind, ask in (
        ("unknown", openai.NotFoundError, {"model": "gpt-4o", "max_tokens": 4}),
        ("long", openai.BadRequestError, {"model": MODEL, "max_tokens": 100_000}),
    ):
        try:
            client.chat.completions.create(messages=PLAIN, **ask)
        except kind as error:
            found[name] = error.body["message"]
    return found


def streamed() -> dict:
    client = openai.OpenAI(base_url=BASE, api_key="none needed", max_retries=0)
    asked = {"model": f"{MODEL}:standard", "messages": HARMFUL, "max_tokens": 16}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    told = next(c.model_extra["demur"] for c in chunks if "demur" in (c.model_extra or {}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    return {"text": text, "open": told["open"], "usage": chunks[-1].usage.completion_tokens}


async def together() -> list[str]:
    async with openai.AsyncOpenAI(base_url=BASE, api_key="none needed", max_retries=0) as client:

        async def one(messages: list, stream: bool) -> str:
            got = await client.chat.completions.create(
                model=f"{MODEL}:standard", messages=messages, max_tokens=16, stream=stream
            )
            if not stream:
                return got.choices[0].message.content
            return "".join([c.choices[0].delta.content or "" async for c in got if c.choices])

        return await asyncio.gather(*(one(m, s) for m in (HARMFUL, PLAIN) for s in (False, True)))


print(json.dumps({"sync": sync(), "streamed": streamed(), "async": asyncio.run(together())}))
