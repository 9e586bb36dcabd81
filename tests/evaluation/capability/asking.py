"""lm-eval requests on the tiny models, and what a naive loop makes of them: one row at a time, nothing padded."""

from collections.abc import Iterable

import torch

from demur.models.chat import Encoded, Role, tokens_and_roles
from demur.records import Message, Policy
from demur.steering.session import steer
from tests import tiny

TEXTS = ["Hi", "How do I bake a cake?", "A rather longer question, about nothing in particular.", "Why?\nAnswer:"]
CONTINUATIONS = [" Yes", " No, never", " Maybe"]


def instances(kind: str, arguments: Iterable[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def scoring(contexts: Iterable[str]) -> list:
    return instances("loglikelihood", [(c, t) for c in contexts for t in CONTINUATIONS])


def replying(contexts: Iterable[str], **how) -> list:
    settings = {"until": ["zz"], "max_gen_toks": 6, "do_sample": False} | how
    return instances("generate_until", [(c, dict(settings)) for c in contexts])


def rolling(texts: Iterable[str]) -> list:
    return instances("loglikelihood_rolling", [(t,) for t in texts])


def talks(texts: Iterable[str] = TEXTS) -> list[list[dict[str, str]]]:
    """As lm-eval makes them, one with a system prompt and a worked example."""
    made = [[{"role": "user", "content": t}] for t in texts]
    before = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "One and one?"},
        {"role": "assistant", "content": "Two."},
    ]
    return [*made[:-1], before + made[-1]]


def code(text: str) -> list[int]:
    return tiny.tokenizer()(text)["input_ids"]


def raw_prompt(text: str) -> tuple[list[int], list[int]]:
    """All of it is the user's; nothing is added by the tiny tokenizer."""
    return code(text), [int(Role.USER)] * len(code(text))


def templated_prompt(talk: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    return tokens_and_roles(tiny.lm(), [Message.model_validate(m) for m in talk])


@torch.inference_mode()
def alone(policy: Policy, prompt: tuple[list[int], list[int]], continuation: list[int]) -> tuple[float, dict]:
    """The continuation's log-probability in a row of its own, and what the gate saw."""
    lm = tiny.lm()
    ids, roles = (torch.tensor([part]) for part in prompt)
    row = torch.tensor([prompt[0] + continuation])
    with steer(lm, tiny.saes(), [policy], Encoded(ids, roles)) as session:
        log_probs = lm.model(input_ids=row).logits[0].log_softmax(-1)
    places = range(ids.shape[1] - 1, row.shape[1] - 1)
    return sum(float(log_probs[at, row[0, at + 1]]) for at in places), session.report(0, 0)


@torch.inference_mode()
def naive_score(policy: Policy, prompt: tuple[list[int], list[int]]) -> float:
    """The gate's formula on the plain model's residual stream, written out."""
    lm, sensor = tiny.lm(), policy.gate.sensor
    ids, roles = prompt
    hidden = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
    sae = tiny.sae(layer=0)
    said = [at for at, role in enumerate(roles) if role in (Role.USER, Role.ASSISTANT)]
    read = sorted({*said, len(ids) - 1}) if said else []
    score = sensor.bias
    for feature, weight in zip(sensor.features, sensor.weights, strict=True):
        values = [float(sae.encode(hidden[at : at + 1])[0, feature]) for at in read]
        score += weight * max(values, default=0.0)
    return score


def middle(prompts: Iterable[tuple[list[int], list[int]]]) -> float:
    """A threshold that some of the prompts reach and some do not."""
    scores = sorted(naive_score(tiny.policy(threshold=0.0), p) for p in prompts)
    return (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
