"""The gate works in every kind of call, on raw and on templated text; a model in which it hides in one is caught."""

import pytest

from demur.steering.policies import NONE
from tests import tiny
from tests.evaluation.capability import asking

pytestmark = pytest.mark.lm_eval
WAYS = ("raw", "templated")
CALLS = {"loglikelihood": asking.scoring, "generate_until": asking.replying, "loglikelihood_rolling": asking.rolling}


def at_work(kind_of_model: type) -> None:
    """Asks everything both ways; the gate must have decided on each item, from the whole context, and then acted."""
    talks = asking.talks()
    prompts = {
        "raw": list(map(asking.raw_prompt, asking.TEXTS)),
        "templated": list(map(asking.templated_prompt, talks)),
    }
    for way in WAYS:
        policy = tiny.policy(threshold=asking.middle(prompts[way]))
        none, model = (kind_of_model(p, tiny.lm(), saes=tiny.saes(), batch_size=3, quiet=True) for p in (NONE, policy))
        contexts = asking.TEXTS if way == "raw" else [model.apply_chat_template(t) for t in talks]
        scores = dict(zip(contexts, (asking.naive_score(policy, p) for p in prompts[way]), strict=True))
        for kind, ask in CALLS.items():
            requests = ask(contexts)
            found, plain = (getattr(m, kind)(requests) for m in (model, none))
            assert model.decided[kind] == model.asked[kind] == len(requests), (
                f"{kind}, {way}: not every item decided on"
            )
            for request, ours, theirs in zip(requests, found, plain, strict=True):
                context = "" if kind == "loglikelihood_rolling" else request.args[0]
                score = policy.gate.sensor.bias if not context else scores[context]
                seen = model.decisions[kind, context]
                assert seen.gate == pytest.approx(score, abs=1e-9), f"{kind}, {way}: read something else"
                assert seen.open == (score >= policy.gate.threshold)
                assert (ours != theirs) is seen.open, f"{kind}, {way}: decided, but did not act on it"
        assert sum(model.decided.values()) == sum(model.asked.values())


def steered() -> type:
    from demur.evaluation.capability.lm import SteeredLM

    return SteeredLM


def hiding(where: str) -> type:
    """Models whose gate is not at work in one place."""
    from lm_eval.models.huggingface import HFLM

    from demur.models.chat import Role

    class InScoring(steered()):
        def _loglikelihood_tokens(self, *args, **kwargs):
            return HFLM._loglikelihood_tokens(self, *args, **kwargs)

    class InRolling(steered()):
        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            self.asked["loglikelihood_rolling"] += len(requests)
            policy, self.policy = self.policy, NONE
            try:
                return HFLM.loglikelihood_rolling(self, requests, True)
            finally:
                self.policy = policy

    class InGenerating(steered()):
        def _model_generate(self, *args, **kwargs):
            return HFLM._model_generate(self, *args, **kwargs)

    class InRaw(steered()):
        def _labelled(self, context, ending=0):
            ids, roles = super()._labelled(context, ending)
            return ids, roles if context in self.talks else [int(Role.TEMPLATE)] * len(ids)

    class InTemplated(steered()):
        def _labelled(self, context, ending=0):
            ids, roles = super()._labelled(context, ending)
            return ids, [int(Role.TEMPLATE)] * len(ids) if context in self.talks else roles

    class InWhoSpeaks(steered()):
        def apply_chat_template(self, *args, **kwargs):
            return HFLM.apply_chat_template(self, *args, **kwargs)

    class InActing(steered()):
        def _answer(self, kind, requests, compute):
            super()._answer(kind, requests, compute)
            policy, self.policy = self.policy, NONE
            try:
                return compute(requests)
            finally:
                self.policy = policy

    kinds = (InScoring, InRolling, InGenerating, InRaw, InTemplated, InWhoSpeaks, InActing)
    return next(k for k in kinds if k.__name__ == where)


def test_the_gate_is_at_work_everywhere():
    at_work(steered())


@pytest.mark.parametrize(
    ("where", "caught"),
    {
        "InScoring": "not every item decided on",
        "InRolling": "not every item decided on",
        "InGenerating": "not every item decided on",
        "InRaw": "raw: read something else",
        "InTemplated": "templated: read something else",
        "InWhoSpeaks": "templated: read something else",
        "InActing": "did not act on it",
    }.items(),
)
def test_a_gate_that_hides_is_caught(where, caught):
    with pytest.raises(AssertionError, match=caught):
        at_work(hiding(where))
