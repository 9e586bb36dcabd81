"""A tiny model that refuses when its prompt is full of `!`, by one direction that we planted; our SAE must find it.

Block 0 attends evenly to all tokens and writes how many of them are `!` along the direction REFUSAL. The head says `N`
when that is large and `Y` otherwise.
"""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
import transformers

from demur.data.corpus import Sequences
from demur.evaluation.judging.rules import Rules
from demur.features.contrast import read_replies, separation
from demur.features.effect import Bench
from demur.features.optimise import descend, rehearse, rehearse_freely
from demur.features.pursuit import pursue
from demur.models.chat import tokens_and_roles
from demur.models.generation import GenerationSettings
from demur.models.load import LanguageModel, wrap
from demur.records import Edit, Intervention, Policy, Prompt, Transcript, Verdict
from demur.sae.settings import SAESettings
from demur.sae.train import train
from demur.steering.generate import generate
from demur.steering.policies import NONE
from tests import tiny

REFUSAL, CONSTANT, HARM = 0, 1, 2
SITE = "1.resid_post"
WORDS = ["tea", "how", "sky", "boat", "why", "sum", "old", "red", "walk", "music"]


def planted() -> LanguageModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**tiny.SMALL, "hidden_size": 64, "num_hidden_layers": 2})
    model = transformers.AutoModelForCausalLM.from_config(config)
    token = tiny.tokenizer().convert_tokens_to_ids
    with torch.no_grad():
        for block in model.model.layers:
            for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                part.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        words = model.model.embed_tokens.weight
        words.normal_(0, 0.15)
        words[:, [REFUSAL, HARM]] = 0
        words[:, CONSTANT] = 1
        words[token("!"), HARM] = 1
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight[0, HARM] = 1
        attention.o_proj.weight[REFUSAL, 0] = 5
        model.lm_head.weight.zero_()
        model.lm_head.weight[token("N"), REFUSAL] = 10
        model.lm_head.weight[token("Y"), CONSTANT] = 5
    return wrap(model, tiny.tokenizer(), "planted")


def requests(harmful: bool, n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        words = rng.choices(WORDS, k=rng.randint(4, 9))
        made.append(" ".join(w + "!" * rng.randint(4, 8) if harmful else w for w in words))
    return made


def answers(lm, saes, texts, policy) -> list[str]:
    found = dict(generate(lm, saes, tiny.said(*texts), [policy] * len(texts), GenerationSettings(max_new_tokens=2)))
    return [found[i].text[:1] for i in range(len(texts))]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The planted model, the SAE trained on it, the features that contrast finds (best first), and their levels."""
    lm = planted()
    texts = [t for pair in zip(requests(True, 800, 1), requests(False, 800, 2), strict=True) for t in pair]
    rows = [tokens_and_roles(lm, talk)[0] for talk in tiny.said(*texts)]
    # A token's identity and the planted direction: two things to say of each activation.
    settings = SAESettings(site=SITE, d_sae=64, k=2, batch=256, buffer=8192, lr=5e-3, dead_after=100_000)
    (sae,) = train(lm, Sequences.of(rows), settings, tmp_path_factory.mktemp("planted"))
    token = tiny.tokenizer().convert_tokens_to_ids
    refusing = read_replies(lm, sae, tiny.said(*requests(True, 40, 3)), [[token("N")]] * 40)
    complying = read_replies(lm, sae, tiny.said(*requests(False, 40, 4)), [[token("Y")]] * 40)
    d = separation(refusing, complying)
    features = [int(f) for f in d.argsort(descending=True) if d[f] > 0.1]
    return lm, sae, features, refusing.level


def test_the_plain_model_refuses_harm_and_nothing_else(found):
    lm = found[0]
    assert set(answers(lm, {}, requests(True, 20, 5), NONE)) == {"N"}
    assert set(answers(lm, {}, requests(False, 20, 6), NONE)) == {"Y"}


def steered(lm, sae, edits: list[Edit]) -> Policy:
    act = Intervention(site=SITE, edits=tuple(edits))
    return Policy(name="flip", model_hash=lm.hash, saes={sae.config.site: sae.hash}, interventions=(act,))


def test_the_features_that_contrast_finds_point_along_the_planted_direction(found):
    _, sae, features, _ = found
    assert sae.W_dec[features[0], REFUSAL] > 0.8
    assert all(sae.W_dec[f, REFUSAL] > 0.25 for f in features)
    assert len(features) <= 3


def test_clamping_the_best_one_makes_the_model_refuse_what_it_answered(found):
    lm, sae, features, level = found
    policy = steered(lm, sae, [Edit(feature=features[0], operation="clamp", value=float(level[features[0]]))])
    assert set(answers(lm, {SITE: sae}, requests(False, 20, 7), policy)) == {"N"}


class OneLetter(Rules):
    """The planted model refuses in one letter."""

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        for transcript, verdict in zip(transcripts, super().judge(transcripts), strict=True):
            outcome = "refused" if transcript.reply.startswith("N") else "complied"
            yield verdict.model_copy(update={"outcome": outcome})


def test_descent_through_the_model_finds_features_that_make_it_refuse(found):
    lm, sae, _, _ = found
    token = tiny.tokenizer().convert_tokens_to_ids
    bench = Bench(lm, sae, judge=OneLetter())
    prompts = [Prompt(id=str(i), prompt=t, label="harmful") for i, t in enumerate(requests(False, 16, 9))]
    amounts = descend(bench, prompts, [[token("N")]], norm=5.0, seed=0)
    assert all(sae.W_dec[f, REFUSAL] > 0.25 for f in list(amounts)[:3])
    direction = rehearse_freely(bench, prompts, amounts, norm=5.0, seed=0)
    assert direction[REFUSAL] > 0.5 * direction.norm()
    assert set(answers(lm, {SITE: sae}, requests(False, 20, 7), bench.pushing(direction, "reply"))) == {"N"}
    chosen = pursue(direction, sae.W_dec, range(64), 3)
    assert sae.W_dec[next(iter(chosen)), REFUSAL] > 0.25
    rehearsed = rehearse(bench, prompts, chosen, norm=5.0, seed=0)
    assert set(rehearsed) <= set(chosen)
    policy = steered(lm, sae, [Edit(feature=f, operation="clamp", value=v) for f, v in rehearsed.items()])
    assert set(answers(lm, {SITE: sae}, requests(False, 20, 7), policy)) == {"N"}


def test_a_random_feature_flips_nothing(found):
    lm, sae, features, level = found
    for other in random.Random(0).sample([f for f in range(64) if abs(sae.W_dec[f, REFUSAL]) < 0.2], 5):
        policy = steered(lm, sae, [Edit(feature=other, operation="clamp", value=float(level[features[0]]))])
        assert set(answers(lm, {SITE: sae}, requests(False, 10, 8), policy)) == {"Y"}
