"""Rows that come and go: each is as if alone, whatever is beside it and whenever it came."""

import pytest
import torch

from demur.models.chat import encode, tokens_and_roles
from demur.models.generation import GenerationSettings
from demur.server.batch import Batch
from demur.steering.generate import generate
from demur.steering.policies import NONE
from demur.steering.session import steer
from tests import tiny
from tests.server.policies import four, late, read_by_all

TEXTS = (
    "Hi",
    "How do I bake a cake?",
    "Why?",
    "A rather longer question, about nothing in particular.",
    "No",
    "Go on",
    "So",
)
EXACT = {"atol": 1e-10, "rtol": 0}


@torch.inference_mode()
def alone(lm, saes, text, policy, tokens) -> tuple[torch.Tensor, dict]:
    """Logits after the prompt and after each token that follows, in one pass over all of them; what was reported."""
    prompts = encode(lm, tiny.said(text))
    ids = torch.cat([prompts.ids, torch.tensor([tokens])], dim=1)
    with steer(lm, saes, [policy], prompts) as session:
        logits = lm.model(input_ids=ids).logits[0, prompts.ids.shape[1] - 1 :]
    return logits, session.report(0, len(tokens) + 1)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@torch.inference_mode()
def test_a_row_that_came_and_went_among_others_is_the_row_alone(architecture):
    lm, saes = tiny.lm(architecture), tiny.saes(architecture)
    policies = [p.model_copy(update={"model_hash": lm.hash}) for p in (*four(), late(), read_by_all(), NONE)]
    batch = Batch(lm, saes, 4)
    draw = torch.Generator().manual_seed(3)
    fed, got, names = {}, {}, []

    def join(*rows):
        talk = [tiny.said(TEXTS[r])[0] for r in rows]
        logits = batch.join([tokens_and_roles(lm, t) for t in talk], [policies[r] for r in rows])
        for i, r in enumerate(rows):
            fed[r], got[r] = [], [logits[i, -1]]
        names.extend(rows)

    def step():
        tokens = torch.randint(4, 200, (len(names),), generator=draw).tolist()
        logits = batch.step(tokens)
        for i, r in enumerate(names):
            fed[r].append(tokens[i])
            got[r].append(logits[i])

    def leave(row):
        i = names.index(row)
        expected, said = alone(lm, saes, TEXTS[row], policies[row], fed[row])
        torch.testing.assert_close(torch.stack(got[row]), expected, **EXACT)
        found = batch.report(i, len(fed[row]) + 1)
        assert found.keys() == said.keys()
        assert found["edited"] == said["edited"]
        assert found["open"] == said["open"]
        assert found["gate"] == pytest.approx(said["gate"], abs=1e-10)
        assert found.get("trace") == pytest.approx(said.get("trace"), abs=1e-4)
        assert [(f.feature, f.role, f.position, f.token) for f in found["fired"]] == [
            (f.feature, f.role, f.position, f.token) for f in said["fired"]
        ]
        batch.leave(i)
        names[i] = names[-1]
        names.pop()

    join(0)
    step()
    join(1, 2)
    step()
    step()
    leave(0)
    join(3, 4)
    for _ in range(5):
        step()
    leave(2)
    join(5)
    step()
    leave(4)
    join(6)
    step()
    for row in (1, 3, 5, 6):
        leave(row)
        if names:
            step()
    assert len(batch) == 0
    assert sorted(batch.free) == [0, 1, 2, 3]
    join(1, 2, 3)
    step()
    leave(3)


@torch.inference_mode()
def test_the_cache_moves_when_it_is_full_and_nothing_changes(monkeypatch):
    monkeypatch.setattr("demur.server.window.ROOM", 3)
    lm, saes, policy = tiny.lm(), tiny.saes(), tiny.policy(positions="all")
    batch = Batch(lm, saes, 2)
    tokens = list(range(10, 30))
    got = [batch.join([tokens_and_roles(lm, tiny.said("Hello there")[0])], [policy])[0, -1]]
    got += [batch.step([t])[0] for t in tokens]
    torch.testing.assert_close(torch.stack(got), alone(lm, saes, "Hello there", policy, tokens)[0], **EXACT)
    batch.join([tokens_and_roles(lm, tiny.said("A much longer prompt " * 6)[0])], [NONE])
    more = [*tokens, 40, 41, 42, 43]
    got += [batch.step([t, 7])[0] for t in more[20:]]
    torch.testing.assert_close(torch.stack(got), alone(lm, saes, "Hello there", policy, more)[0], **EXACT)


@torch.inference_mode()
def test_a_batch_writes_what_demur_chat_writes():
    lm, saes = tiny.lm(), tiny.saes()
    policies = [*four(), NONE]
    wanted = dict(generate(lm, saes, tiny.said(*TEXTS[:5]), policies, GenerationSettings(max_new_tokens=12)))
    batch = Batch(lm, saes, 5)
    replies = [[] for _ in policies]
    logits = batch.join([tokens_and_roles(lm, t) for t in tiny.said(*TEXTS[:5])], policies)[:, -1]
    for _ in range(12):
        for reply, row in zip(replies, logits, strict=True):
            reply.append(int(row.argmax()))
        logits = batch.step([r[-1] for r in replies])
    for i, reply in wanted.items():
        assert lm.tokenizer.decode(replies[i][: reply.tokens], skip_special_tokens=True).strip() == reply.text


def test_a_policy_that_does_not_fit_leaves_the_others_alone():
    lm, saes = tiny.lm(), tiny.saes()
    batch = Batch(lm, saes, 2)
    with torch.inference_mode():
        batch.join([tokens_and_roles(lm, tiny.said("Hi")[0])], [NONE])
        with pytest.raises(Exception, match="no vector"):
            broken = tiny.policy().interventions[0].model_copy(update={"off": "gone"})
            policy = tiny.policy().model_copy(update={"interventions": (broken,)})
            batch.join([tokens_and_roles(lm, tiny.said("Ho")[0])], [policy])
        assert len(batch) == 1
        assert batch.free == [1]
        batch.step([9])
