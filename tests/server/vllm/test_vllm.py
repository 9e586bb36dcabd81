"""vLLM itself, with the plug-in, beside our own engine: the same decisions, and the same text by the law.

`make test-vllm` runs it in an environment of its own; elsewhere it is skipped.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; run make test-vllm")

from demur.data.prompts import shipped_prompts
from demur.models.generation import GenerationSettings
from demur.models.load import load
from demur.records import Policy
from demur.steering.generate import generate
from demur.steering.policies import find_policy, load_saes
from tests.server.process import Process

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(900)]
POLICIES = ("gated", "none", "paper", "random")
NEW = 24
CLEAR = 1e-3
"""Margin between the likeliest two tokens, in nats, below which rounding decides."""
FLAGS = "--max-model-len 512 --max-num-batched-tokens 64 --block-size 32 --enable-prompt-tokens-details"
"""A prompt of 60 tokens among 31 others is read in pieces then."""


@pytest.fixture(scope="module")
def server():
    # Set before vLLM counts the memory; it would take most of the machine's, and leave one core unused.
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    words = [w for name in POLICIES for w in ("--policy", name)]
    with Process("--engine", "vllm", "--vllm", FLAGS, "--rows", "32", *words, seconds=600) as process:
        yield process


@pytest.fixture(scope="module")
def rows():
    """Four harmful prompts and four harmless ones, each under four policies."""
    prompts = shipped_prompts("test")
    talk = [r.conversation for label in ("harmful", "benign") for r in prompts.where(label=label).sample(4).rows]
    return [(conversation, name) for conversation in talk for name in POLICIES]


def standard(name: str) -> Policy:
    """The policy at the level at which a server has it unless asked."""
    policy = find_policy(name)
    return policy.at_level("standard") if "standard" in policy.levels else policy


@pytest.fixture(scope="module")
def ours(rows):
    """What our engine says, in one batch."""
    lm = load("embedded")
    policies = [standard(name) for _, name in rows]
    talk = [conversation for conversation, _ in rows]
    found = dict(generate(lm, load_saes(lm, policies), talk, policies, GenerationSettings(max_new_tokens=NEW)))
    return [found[i] for i in range(len(rows))]


@pytest.fixture(scope="module")
def theirs(server, rows):
    """What vLLM says, asked all at once."""
    with ThreadPoolExecutor(len(rows)) as pool:
        return list(pool.map(lambda row: ask(server, *row), rows))


def ask(server, conversation, policy: str, **more) -> dict:
    body = {
        "model": "smollm2-135m",
        "messages": [m.model_dump() for m in conversation],
        "demur": {"policy": policy},
        "temperature": 0,
        "max_tokens": NEW,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body | more, timeout=600)
    assert answer.status_code == 200, answer.text
    return answer.json()


def clear_text(answer: dict) -> tuple[str, bool]:
    """The reply up to the first token that rounding might have chosen, and whether that is all of it."""
    said = b""
    for token in answer["choices"][0]["logprobs"]["content"]:
        first, second = (t["logprob"] for t in token["top_logprobs"][:2])
        if first - second < CLEAR:
            return said.decode(errors="ignore"), False
        said += bytes(token["bytes"])
    return answer["choices"][0]["message"]["content"], True


def test_gates_decide_as_our_engines_do(rows, ours, theirs):
    for (_, name), own, answer in zip(rows, ours, theirs, strict=True):
        told = answer["demur"]
        assert told["policy_hash"] == standard(name).hash
        assert told["open"] == own.steering["open"]
        if own.steering["gate"] is not None:
            assert told["gate"] == pytest.approx(own.steering["gate"], abs=2e-3)
            words = [[f["token"] for f in told["fired"] if f["role"] == "sensor"]]
            assert words == [[f.token.strip() for f in own.steering["fired"] if f.role == "sensor"]]
    gated = [answer["demur"]["open"] for (_, name), answer in zip(rows, theirs, strict=True) if name == "gated"]
    assert True in gated and False in gated  # else nothing would have been decided


def test_greedy_text_is_our_engines_up_to_what_rounding_decides(rows, ours, theirs):
    whole = 0
    for (_, name), own, answer in zip(rows, ours, theirs, strict=True):
        text, is_all = clear_text(answer)
        if is_all:
            whole += 1
            assert own.text == text.strip(), name
            assert answer["demur"]["edited"] == own.steering["edited"], name
        else:
            assert own.text.startswith(text.strip()), name
    assert whole >= 0.7 * len(rows)
    by_policy = {n: [own.text for (_, name), own in zip(rows, ours, strict=True) if name == n] for n in POLICIES}
    assert by_policy["gated"] != by_policy["none"] != by_policy["paper"]


def test_a_cached_prefix_is_read_by_the_plain_model_alone(server, rows, theirs):
    talk = rows[0][0]
    again = ask(server, talk, "none")
    assert clear_text(again)[0][:20] == clear_text(theirs[1])[0][:20]
    assert (again["usage"]["prompt_tokens_details"] or {}).get("cached_tokens")
    gated = ask(server, talk, "gated")
    assert not (gated["usage"]["prompt_tokens_details"] or {}).get("cached_tokens")
    assert gated["demur"]["gate"] == pytest.approx(theirs[0]["demur"]["gate"], abs=2e-3)


def test_streamed_answers_are_those_unstreamed_with_the_account_at_the_end(server, rows, theirs):
    body = {"messages": [m.model_dump() for m in rows[0][0]], "model": "smollm2-135m", "temperature": 0}
    text, told = "", None
    with httpx2.stream(
        "POST", f"{server.url}/v1/chat/completions", json=body | {"stream": True, "max_tokens": NEW}, timeout=600
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                text += chunk["choices"][0]["delta"].get("content") or ""
                told = chunk.get("demur", told)
    assert text[:20] == theirs[0]["choices"][0]["message"]["content"][:20]
    assert told["policy"] == "gated" and told["open"] == theirs[0]["demur"]["open"]


def test_several_choices_have_an_account_each(server, rows):
    # Without a seed: vLLM's engine dies of one, on a CPU, where a prompt is read in chunks (docs/vllm.md).
    answer = ask(server, rows[0][0], "gated", n=2, temperature=0.7)
    assert [c["demur"]["policy"] for c in answer["choices"]] == ["gated", "gated"]
    assert answer["choices"][0]["demur"]["gate"] == pytest.approx(answer["choices"][1]["demur"]["gate"], abs=2e-3)


def test_model_ids_name_policies_and_levels_and_others_are_refused(server, rows):
    models = httpx2.get(f"{server.url}/v1/models").json()["data"]
    assert {"smollm2-135m", "smollm2-135m:standard", "smollm2-135m:off", "smollm2-135m/paper:standard"} <= {
        m["id"] for m in models
    }
    off = ask(server, rows[0][0], None, model="smollm2-135m:off", demur={})
    assert off["demur"]["level"] == "off" and not off["demur"]["steered"]
    for body, status in (({"model": "smollm2-135m/never"}, 404), ({"demur": {"policy": "never"}}, 404)):
        given = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}]} | body
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=given, timeout=60)
        assert answer.status_code == status and "never" in answer.json()["error"]["message"]
    # What names no policy passes vLLM's own routes under the usual one.
    text = {"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    assert httpx2.post(f"{server.url}/v1/completions", json=text, timeout=600).json()["demur"]["policy"] == "gated"
