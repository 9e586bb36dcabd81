"""Sets of features whose meaning we wrote ourselves: what is redundant goes, what only works together is seen."""

import pytest

from demur.features.branches import Branches
from demur.features.effect import Bench, try_policies
from demur.features.pruning import dormant, interactions, prune
from tests.planted import by_hand
from tests.planted.by_hand import AGAINST, HALF, OTHER_HALF, TWIN, WRITES


@pytest.fixture(scope="module")
def bench() -> Bench:
    return by_hand.bench()


@pytest.fixture(scope="module")
def quiet():
    """Harmful prompts that the plain model does not refuse."""
    return by_hand.prompts(16, seed=4).where(label="harmful").rows[0::2]


def pruned(bench, amounts, quiet, slack=0.0):
    talk = [p.conversation for p in quiet]
    return prune(bench, Branches(bench), amounts, talk, quiet, by_hand.starts(), slack)


def test_of_two_that_do_the_same_one_goes_and_so_does_what_does_nothing(bench, quiet):
    found = pruned(bench, {WRITES: 2.0, TWIN: 2.0, 12: 0.5, AGAINST: 0.3}, quiet)
    assert found.whole == 1
    assert len(found.amounts) == 1
    assert set(found.amounts) <= {WRITES, TWIN}
    assert [r.left for r in found.path] == [3, 2, 1]
    assert all(r.gone and r.refused == 1 for r in found.path)


def test_what_works_against_the_rest_goes_first(bench, quiet):
    found = pruned(bench, {WRITES: 0.6, AGAINST: 0.05}, quiet)
    assert [r.feature for r in found.path] == [AGAINST]
    assert found.amounts == {WRITES: 0.6}


def test_features_that_only_work_together_both_stay(bench, quiet):
    found = pruned(bench, {HALF: 4.0, OTHER_HALF: 4.0, 13: 0.2}, quiet)
    assert set(found.amounts) == {HALF, OTHER_HALF}
    assert [r.gone for r in found.path] == [True, False]
    assert found.path[1].refused == 0


def test_a_loss_within_the_slack_is_taken(bench, quiet):
    assert len(pruned(bench, {HALF: 4.0, OTHER_HALF: 4.0}, quiet, slack=1.0).amounts) == 1


def test_each_beginning_of_what_is_left_is_a_set_that_was_tried(bench, quiet):
    amounts = {WRITES: 0.45, TWIN: 0.4, 12: 0.4, 13: 0.4}
    found = pruned(bench, amounts, quiet)
    order = [*found.amounts]
    for removal in found.path:
        if removal.left < len(order):
            policy = bench.raising({f: amounts[f] for f in order[: removal.left]}, "reply")
            (again,) = try_policies(bench, [policy], quiet, [])
            assert again.refused == removal.refused
    assert sum(r.gone for r in found.path) == len(amounts) - len(order)


def test_an_interaction_of_two_is_seen_and_is_what_a_naive_sum_says(bench, quiet):
    talk, branches = [p.conversation for p in quiet], Branches(bench)
    amounts = {HALF: 0.6, OTHER_HALF: 0.6, WRITES: 0.5}
    found = interactions(branches, amounts, talk, by_hand.starts())
    assert len(found) == 3
    assert set(found[0].features) == {HALF, OTHER_HALF}
    assert found[0].surplus > 1
    assert found[0].surplus > 5 * max(abs(i.surplus) for i in found[1:])
    for i in found:
        a, b = i.features
        trials = [{}, {a: amounts[a]}, {b: amounts[b]}, {a: amounts[a], b: amounts[b]}]
        none, one, other, both = branches.refusal_log_odds(trials, talk, by_hand.starts()).mean(1).tolist()
        assert i.together == pytest.approx(both - none, abs=1e-4)
        assert i.apart == pytest.approx(one + other - 2 * none, abs=1e-4)


def test_what_would_take_over_gains_when_the_chosen_are_ablated(bench):
    """Of loud prompts refusal is certain; with what carries it gone, raising its twin is worth something again."""
    loud = by_hand.prompts(16, seed=4).where(label="harmful").rows[1::2]
    talk, branches = [p.conversation for p in loud], Branches(bench)
    found = dormant(branches, [WRITES], talk, by_hand.starts(), {WRITES: 1.0, TWIN: 1.0, 12: 1.0, AGAINST: 1.0})
    gains = [d.after - d.before for d in found]
    assert found[0].feature == TWIN
    assert gains[0] > 5 * max([0.1, *gains[1:]])
    assert dormant(branches, [12], talk, by_hand.starts(), {TWIN: 1.0, WRITES: 1.0}) == []
