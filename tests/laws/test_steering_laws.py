"""The laws of steering (design, section 4) on tiny models of eight architectures, in float64."""

import threading

import pytest
import torch

from demur.models import hooks
from demur.models.chat import Encoded, Role, encode
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel
from demur.records import Gate, Policy
from demur.steering.generate import decide, generate
from demur.steering.policies import NONE
from demur.steering.score import reply_log_probs
from demur.steering.session import steer
from tests import tiny

ALL = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
TEXTS = ["Hi", "How do I bake a cake?", "A rather longer question, about nothing in particular."]
EXACT = {"atol": 1e-10, "rtol": 0}


@torch.inference_mode()
def logits(lm: LanguageModel, prompts: Encoded, policies: list[Policy] | None, saes=None) -> torch.Tensor:
    """One pass, `[batch, seq, vocab]`; without policies, the plain model."""

    def run() -> torch.Tensor:
        return lm.model(input_ids=prompts.ids, attention_mask=prompts.mask, position_ids=prompts.positions).logits

    if policies is None:
        return run()
    with steer(lm, saes or {}, policies, prompts):
        return run()


@torch.inference_mode()
def logits_in_pieces(lm, prompts, policies, saes, sizes) -> torch.Tensor:
    """The same pass, fed in pieces with a KV cache."""
    cache, parts, start = None, [], 0
    with steer(lm, saes, policies, prompts):
        for size in sizes:
            end = start + size
            out = lm.model(
                input_ids=prompts.ids[:, start:end],
                attention_mask=prompts.mask[:, :end],
                position_ids=prompts.positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            cache, start = out.past_key_values, end
            parts.append(out.logits)
    return torch.cat(parts, dim=1)


@ALL
def test_empty_policy_is_bit_equal_to_the_plain_model(architecture):
    lm = tiny.lm(architecture)
    prompts = encode(lm, tiny.said(*TEXTS))
    assert torch.equal(logits(lm, prompts, [NONE] * 3), logits(lm, prompts, None))


@ALL
def test_shut_gate_is_bit_equal_to_the_plain_model(architecture):
    lm = tiny.lm(architecture)
    prompts = encode(lm, tiny.said(*TEXTS))
    shut = [tiny.policy(architecture, threshold=1e9)] * 3
    assert torch.equal(logits(lm, prompts, shut, tiny.saes(architecture)), logits(lm, prompts, None))


@ALL
def test_rows_that_are_not_steered_stay_bit_equal_beside_one_that_is(architecture):
    lm = tiny.lm(architecture)
    prompts = encode(lm, tiny.said(*TEXTS))
    mixed = [NONE, tiny.policy(architecture, positions="all"), tiny.policy(architecture, threshold=1e9)]
    steered, plain = logits(lm, prompts, mixed, tiny.saes(architecture)), logits(lm, prompts, None)
    assert torch.equal(steered[0], plain[0])
    assert torch.equal(steered[2], plain[2])
    assert not torch.allclose(steered[1], plain[1])


@ALL
@pytest.mark.parametrize("positions", ["reply", "user", "all"])
def test_a_row_alone_is_the_row_in_a_mixed_padded_batch(architecture, positions):
    lm, saes = tiny.lm(architecture), tiny.saes(architecture)
    policies = [
        tiny.policy(architecture, "a", positions, threshold=-1e9),
        tiny.policy(architecture, "b", positions, features=(2, 11), operation="add"),
        tiny.policy(architecture, "c", positions, keep_error=False),
    ]
    together = logits(lm, encode(lm, tiny.said(*TEXTS)), policies, saes)
    for row, (text, policy) in enumerate(zip(TEXTS, policies, strict=True)):
        alone = logits(lm, encode(lm, tiny.said(text)), [policy], saes)
        torch.testing.assert_close(together[row, -alone.shape[1] :], alone[0], **EXACT)


@ALL
@pytest.mark.parametrize("cuts", ["each token", "all but the last", "two uneven cuts"])
def test_pieces_with_a_cache_are_one_pass(architecture, cuts):
    lm, saes = tiny.lm(architecture), tiny.saes(architecture)
    prompts = encode(lm, tiny.said("Hello", "Why?"))
    width = prompts.ids.shape[1]
    sizes = {"each token": [1] * width, "all but the last": [width - 1, 1], "two uneven cuts": [7, 9, width - 16]}[cuts]
    policies = [tiny.policy(architecture, "a", "reply", threshold=-1e9), tiny.policy(architecture, "b", "all")]
    whole = logits(lm, prompts, policies, saes)
    torch.testing.assert_close(logits_in_pieces(lm, prompts, policies, saes, sizes), whole, **EXACT)


@ALL
def test_generated_tokens_are_those_of_one_forced_pass(architecture):
    lm, saes = tiny.lm(architecture), tiny.saes(architecture)
    policies = [tiny.policy(architecture, "a", "all"), tiny.policy(architecture, "b", "reply", threshold=-1e9), NONE]
    talk = tiny.said(*TEXTS)
    prompts = encode(lm, talk)
    with steer(lm, saes, policies, prompts):
        out = lm.model.generate(
            input_ids=prompts.ids, attention_mask=prompts.mask, max_new_tokens=8, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True, pad_token_id=0,
        )  # fmt: skip
    replies = out.sequences[:, prompts.ids.shape[1] :]
    generated = torch.stack(out.logits, dim=1).log_softmax(-1).gather(-1, replies[..., None])[..., 0]
    forced = reply_log_probs(lm, saes, talk, policies, replies.tolist())
    for row in range(3):
        torch.testing.assert_close(forced[row].double(), generated[row].double(), atol=1e-5, rtol=0)


@ALL
@pytest.mark.parametrize("positions", ["reply", "user", "all"])
def test_edited_positions_are_counted_as_the_policy_says(architecture, positions):
    lm, saes = tiny.lm(architecture), tiny.saes(architecture)
    policy = tiny.policy(architecture, positions=positions)
    talk = tiny.said(*TEXTS)
    prompts = encode(lm, talk)
    replies = dict(generate(lm, saes, talk, [policy] * 3, GenerationSettings(max_new_tokens=6)))
    for row, reply in replies.items():
        content = int((prompts.roles[row] == Role.USER).sum()) if positions != "reply" else 0
        assert reply.steering["edited"] == content + reply.tokens
        assert [f.feature for f in reply.steering["fired"]] == [3, 7]


def test_shut_gate_edits_nothing_and_says_so():
    talk = tiny.said(*TEXTS)
    replies = dict(
        generate(tiny.lm(), tiny.saes(), talk, [tiny.policy(threshold=1e9)] * 3, GenerationSettings(max_new_tokens=4))
    )
    assert all(r.steering["edited"] == 0 and not r.steering["open"] for r in replies.values())
    assert all(f.role == "sensor" for r in replies.values() for f in r.steering["fired"])


def test_a_decision_without_a_reply_is_the_decision_with_one():
    lm, saes, talk = tiny.lm(), tiny.saes(), tiny.said(*TEXTS, "Go!", "Who?")
    policy = tiny.policy(threshold=0.0)
    middle = sorted(d["gate"] for d in decide(lm, saes, talk, policy))[2]
    policy = tiny.policy(threshold=middle)
    replies = dict(generate(lm, saes, talk, [policy] * 5, GenerationSettings(max_new_tokens=2), batch=2))
    for i, seen in enumerate(decide(lm, saes, talk, policy, batch=3)):
        assert seen["gate"] == pytest.approx(replies[i].steering["gate"], abs=1e-10)
        assert seen["open"] == replies[i].steering["open"]
    assert {seen["open"] for seen in decide(lm, saes, talk, policy)} == {True, False}


def hooks_of(lm):
    """All forward hooks in the model; transformers leaves some of its own once hidden states were asked for."""
    return {(name, hook) for name, module in lm.model.named_modules() for hook in module._forward_hooks.values()}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_failure(error):
    lm = tiny.lm()
    before = hooks_of(lm)
    prompts = encode(lm, tiny.said("Hi"))
    with pytest.raises(error), steer(lm, tiny.saes(), [tiny.policy()], prompts):
        raise error
    assert not hooks._watched
    assert hooks_of(lm) == before


def test_no_hook_is_left_after_success_or_halt():
    from demur.activations.harvest import read

    lm = tiny.lm()
    before = hooks_of(lm)
    prompts = encode(lm, tiny.said("Hi"))
    logits(lm, prompts, [tiny.policy()], tiny.saes())
    read(lm, ["0.resid_post"], prompts.ids)
    assert not hooks._watched
    assert hooks_of(lm) == before


def test_two_policies_in_two_threads_do_not_meet():
    lm, saes = tiny.lm(), tiny.saes()
    prompts = encode(lm, tiny.said(*TEXTS))
    policies = {"a": tiny.policy(name="a", positions="all"), "b": tiny.policy(name="b", positions="all", value=-3.0)}
    wanted = {name: logits(lm, prompts, [p] * 3, saes) for name, p in policies.items()}
    plain = logits(lm, prompts, None)
    wrong: list[str] = []
    barrier = threading.Barrier(3)

    def work(name: str | None) -> None:
        barrier.wait()
        for _ in range(15):
            found = logits(lm, prompts, [policies[name]] * 3 if name else None, saes)
            if not torch.equal(found, wanted[name] if name else plain):
                wrong.append(str(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not hooks._watched


@pytest.mark.parametrize("pooling", ["max", "mean", "last"])
def test_a_gate_in_a_session_is_the_naive_pooled_sum(pooling):
    from demur.activations.harvest import read

    lm, saes = tiny.lm(), tiny.saes()
    sensor = tiny.SENSOR.model_copy(update={"pooling": pooling})
    policy = tiny.policy().model_copy(update={"gate": Gate(sensor=sensor, threshold=0.0)})
    prompts = encode(lm, tiny.said(*TEXTS))
    with steer(lm, saes, [policy] * 3, prompts) as session, torch.inference_mode():
        lm.model(input_ids=prompts.ids, attention_mask=prompts.mask, position_ids=prompts.positions)
    for row, text in enumerate(TEXTS):
        one = encode(lm, tiny.said(text))
        x = read(lm, ["0.resid_post"], one.ids)["0.resid_post"][0]
        seen = [i for i in range(len(x)) if one.roles[0, i] == Role.USER or i == len(x) - 1]
        f = saes["0.resid_post"].encode(x[seen])[:, list(sensor.features)]
        pooled = {"max": f.amax(0), "mean": f.mean(0), "last": f[-1]}[pooling]
        score = sum(w * float(v) for w, v in zip(sensor.weights, pooled, strict=True)) + sensor.bias
        assert session.report(row, 1)["gate"] == pytest.approx(score, abs=1e-10)
