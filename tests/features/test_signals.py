"""Each signal against a naive reading of it, and that it finds the feature whose meaning we wrote ourselves."""

import dataclasses

import pytest
import torch
from scipy import stats

from demur.features.branches import Branches
from demur.features.contrast import read_replies, separation
from demur.features.effect import Bench
from demur.features.optimise import descend
from demur.features.reading import read_prompts
from demur.features.signals import (
    AMPLIFIED,
    FEWEST,
    NEUTRAL,
    TOKENS,
    attribution,
    best,
    cosines,
    logit_lens,
    output_scores,
    paired,
    wrapped_pairs,
)
from demur.models.chat import tokens_and_roles
from tests import tiny
from tests.planted import by_hand
from tests.planted.by_hand import AGAINST, DENSE, TEMPLATE, TWIN, WRITES


@pytest.fixture(scope="module")
def bench() -> Bench:
    return by_hand.bench()


@pytest.fixture(scope="module")
def harmful():
    return by_hand.prompts(12).where(label="harmful").rows


def test_the_signed_rank_test_is_that_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 5, (30, 12), generator=generator).float() for _ in range(2))
    first[:, 0] += 2
    first[:, 1] = second[:, 1]
    first[5:, 2] = second[5:, 2]  # too few pairs that differ
    found = paired(first, second)
    p = {}
    for j in range(12):
        d = [float(a - b) for a, b in zip(first[:, j], second[:, j], strict=True) if a != b]
        if len(d) < FEWEST:
            assert (found.q[j], found.effect[j]) == (1, 0)
            continue
        ranks = stats.rankdata([abs(x) for x in d])
        up = sum(r for x, r in zip(d, ranks, strict=True) if x > 0)
        down = sum(r for x, r in zip(d, ranks, strict=True) if x < 0)
        assert float(found.effect[j]) == pytest.approx((up - down) / (up + down), abs=1e-6)
        p[j] = stats.wilcoxon(d, alternative="greater", method="approx").pvalue
    # Benjamini and Hochberg: the smallest n p / rank among those at least as large.
    order = sorted(p, key=lambda j: p[j])
    for place, j in enumerate(order):
        q = min(p[k] * len(p) / (rank + 1) for rank, k in enumerate(order) if rank >= place)
        assert float(found.q[j]) == pytest.approx(min(1, q), abs=1e-6)
    assert int(found.q.argmin()) == 0
    assert float(found.q[0]) < 0.05


def test_what_a_wrapper_takes_away_is_found_on_pairs(bench, harmful):
    roomy = dataclasses.replace(bench.lm, context=10_000)
    pairs = wrapped_pairs(roomy, harmful)
    for row, (plain, wrapped) in zip(harmful, pairs, strict=True):
        assert plain == row.conversation
        assert row.prompt in wrapped[-1].content
        assert wrapped != plain, "a wrapper may leave the prompt as it is and put words before it"
    pools = read_prompts(roomy, bench.sae, [c for pair in pairs for c in pair], ["last"])["last"]
    found = paired(pools[0::2], pools[1::2])
    # Of the prompts half are loud, and the wrapper drowns the noise.
    assert float(found.effect[WRITES]) == 1
    assert float(found.q[WRITES]) < 0.1
    assert float(found.effect[AGAINST]) == 0


def test_what_does_not_fit_in_a_wrapper_is_left_out(harmful):
    short = dataclasses.replace(tiny.lm(), context=300)
    whole, fitting = wrapped_pairs(tiny.lm(), harmful), wrapped_pairs(short, harmful)
    assert 0 < len(fitting) < len(harmful)
    assert all(len(tokens_and_roles(short, wrapped)[0]) < 300 for _, wrapped in fitting)
    assert fitting == [pair for pair in whole if pair in fitting]


def test_cosines_are_those_of_the_rows(bench):
    direction = torch.randn(bench.lm.d_model, generator=torch.Generator().manual_seed(1))
    rows = 3 * bench.sae.W_dec
    naive = [torch.nn.functional.cosine_similarity(row, direction, dim=0) for row in rows]
    torch.testing.assert_close(cosines(rows, direction), torch.stack(naive))


def test_the_refusal_direction_and_the_contrast_point_to_the_planted_features(bench, harmful):
    loud, quiet = harmful[1::2], harmful[0::2]
    refusing, complying = (
        read_replies(bench.lm, bench.sae, [p.conversation for p in rows], by_hand.starts() * len(rows))
        for rows in (loud, quiet)
    )
    found = cosines(bench.sae.W_dec, refusing.stream - complying.stream)
    assert set(best(found, 2)) == {WRITES, TWIN}
    assert next(iter(best(separation(refusing, complying), 5))) in (WRITES, TWIN)


def test_the_stream_of_replies_is_its_mean(harmful):
    lm, sae = tiny.lm(), tiny.sae()
    talk, replies = tiny.said("Hi", "Boat?"), [[40, 41, 42], [50]]
    naive = []
    for conversation, reply in zip(talk, replies, strict=True):
        ids = tokens_and_roles(lm, conversation)[0]
        hidden = lm.model(input_ids=torch.tensor([ids + reply]), output_hidden_states=True).hidden_states[2][0]
        naive += list(hidden[len(ids) - 1 : -1])
    found = read_replies(lm, sae, talk, replies).stream
    torch.testing.assert_close(found, torch.stack(naive).mean(0).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("held", [{}, {3: 2.0}])
@pytest.mark.parametrize("packs", [True, False])
def test_attribution_is_the_slope_of_the_measured_odds(held, packs):
    """Clamped a little way from where they are towards their levels, features move the odds as attribution says."""
    bench = Bench(tiny.lm(), tiny.sae())
    branches = Branches(bench)
    branches.packs = packs
    talk, beginnings = tiny.said("Hi", "What is a boat?"), [[40, 41], [50]]
    levels = torch.full((64,), 1e-3)
    found = attribution(branches, talk, beginnings, levels, held)
    quiet = [j for j in range(64) if j != 3 and silent(bench, talk, beginnings, held, j)]
    assert len(quiet) > 10
    odds = branches.refusal_log_odds([held, *(held | {j: 1e-3} for j in quiet)], talk, beginnings).mean(1).double()
    slopes = (odds[1:] - odds[0]) / 1e-3
    torch.testing.assert_close(found[quiet] / 1e-3, slopes.float(), atol=0.02, rtol=0.05)
    assert slopes.abs().max() > 0.1


def silent(bench, talk, beginnings, held, feature) -> bool:
    """Whether the feature is nowhere active, so that all of the way to its level is raised."""
    found = []

    def change(x, which):
        changed = Branches(bench).clamping([held])(x, torch.zeros_like(which))
        # An edit starts from the activation before anything was clamped, attribution from the one after.
        found.extend(bench.sae.encode(stream)[:, feature] for stream in (x, changed))
        return changed

    for conversation in talk:
        list(Branches(bench).log_probs(conversation, beginnings, change))
    return bool((torch.cat(found) == 0).all())


def test_attribution_finds_the_planted_feature_and_knows_its_opposite(bench, harmful):
    levels = torch.ones(by_hand.D_SAE)
    found = attribution(Branches(bench), [p.conversation for p in harmful], by_hand.starts(), levels)
    assert int(found.argmax()) in (WRITES, TWIN, DENSE, TEMPLATE)
    assert int(found.argmin()) == AGAINST
    assert float(found[WRITES]) > 0.5


def test_the_lens_is_the_last_norm_and_the_head():
    lm, sae = tiny.lm(), tiny.sae()
    naive = lm.model.lm_head(lm.model.model.norm(sae.W_dec))
    torch.testing.assert_close(logit_lens(lm, sae.W_dec), naive.float(), atol=1e-5, rtol=1e-5)


def test_output_scores_are_those_of_a_naive_loop():
    lm, sae = tiny.lm(), tiny.sae()
    found = output_scores(Bench(lm, sae), [3, 7, 11], batch=2)
    ids = torch.tensor([lm.tokenizer(NEUTRAL)["input_ids"]])
    for feature in (3, 7, 11):
        tokens = lm.model.lm_head(lm.model.model.norm(sae.W_dec[feature])).topk(TOKENS).indices

        def raised(module, args, output, feature=feature):
            hidden = output[0] if isinstance(output, tuple) else output
            last = hidden[0, -1].clone()
            hidden[0, -1] = last + AMPLIFIED * sae.encode(last[None]).max() * sae.W_dec[feature]

        handle = lm.blocks[1].register_forward_hook(raised)
        p = lm.model(input_ids=ids).logits[0, -1].float().softmax(-1)
        handle.remove()
        order = p.argsort(descending=True).tolist()
        rank = min(order.index(int(t)) for t in tokens)
        naive = (1 - rank / len(p)) * max(float(p[t]) for t in tokens)
        assert found[feature] == pytest.approx(naive, abs=1e-6)


def test_a_feature_that_writes_what_it_says_has_a_high_output_score(bench):
    found = output_scores(bench, [WRITES, AGAINST])
    assert found[WRITES] > 0.9
    assert found[WRITES] > found[AGAINST]


def test_descent_names_the_planted_features_and_no_other_that_is_not_allowed(bench, harmful):
    allowed = torch.ones(by_hand.D_SAE, dtype=torch.bool)
    allowed[[DENSE, TEMPLATE]] = False
    found = descend(bench, harmful, by_hand.starts(), norm=3.0, seed=0, allowed=allowed)
    assert next(iter(found)) in (WRITES, TWIN)
    assert not {DENSE, TEMPLATE, AGAINST} & set(found)
    amounts = list(found.values())
    assert amounts == sorted(amounts, reverse=True)


def test_the_best_are_those_above_nothing():
    assert best(torch.tensor([0.0, 3.0, -1.0, 3.0, 5.0]), 3) == {4: 5.0, 1: 3.0, 3: 3.0}
    assert best(torch.tensor([0.0, 3.0, -1.0]), 3) == {1: 3.0}
    assert list(best({7: 1.0, 2: 1.0, 5: -2.0}, 3)) == [2, 7]
