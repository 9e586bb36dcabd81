"""The Pareto front against its definition, and the rule that takes the operating point from it."""

import random

from demur.calibration.front import choose, finalists, pareto_front
from demur.calibration.settings import CalibrationSettings
from demur.calibration.trials import Trial
from demur.evaluation.statistics import Rate


def trial(number: int, refused: int, benign: int = 0, broken: int = 0, fluent: int | None = None, kl: float = 0.1, **p):
    return Trial(
        number=number,
        params={"dose": 1.0, "positions": "reply"} | p,
        refused=Rate.of(refused, 100),
        benign_refused=Rate.of(benign, 50),
        degenerate=Rate.of(broken, 150),
        fluent=Rate.of(refused if fluent is None else fluent, refused) if refused else None,
        nats=1.0 + number / 1000,
        kl=kl,
    )


def test_the_front_is_what_no_other_beats():
    rng = random.Random(0)
    for _ in range(20):
        trials = [
            trial(i, rng.randint(0, 9) * 10, rng.randint(0, 5), rng.randint(0, 3), kl=rng.choice([0.1, 0.2]))
            for i in range(40)
        ]
        front = {t.number for t in pareto_front(trials)}
        for t in trials:
            better = [
                o
                for o in trials
                if o.refused.rate - o.degenerate.rate >= t.refused.rate - t.degenerate.rate
                and o.benign_refused.rate <= t.benign_refused.rate
                and o.nats <= t.nats
                and o.kl <= t.kl
                and o.aims != t.aims
            ]
            assert (t.number in front) == (not better)
        assert front


def test_the_mildest_wins_of_those_near_the_most_refused_within_the_limits():
    settings = CalibrationSettings()
    trials = [
        trial(0, 97, broken=15),  # breaks too many replies
        trial(1, 96, fluent=80),  # not fluent
        trial(2, 92, benign=20),
        trial(3, 90, benign=12),  # the mildest near the best
        trial(4, 90, benign=12, kl=0.4),
        trial(5, 80, benign=0),
    ]
    chosen, rule = choose(trials, settings)
    assert chosen.number == 3
    assert "(4 of 6)" in rule and "(3)" in rule
    assert choose(trials, settings.model_copy(update={"slack": 0.15}))[0].number == 5


def test_what_refuses_greedily_alone_does_not_win():
    drawn = (60, 88, 90)
    trials = [trial(i, 95, kl=i / 10).model_copy(update={"drawn": Rate.of(n, 100)}) for i, n in enumerate(drawn)]
    chosen, rule = choose(trials, CalibrationSettings())
    assert chosen.number == 1, "the mildest of those that hold where any word may be taken"
    assert "where drawn at temperature 1, (2)" in rule
    torn = [
        trials[0].model_copy(update={"refused": Rate.of(99, 100)}),
        trial(1, 79).model_copy(update={"drawn": Rate.of(90, 100)}),
    ]
    assert choose(torn, CalibrationSettings())[0].number == 1, (
        "twenty points short of one is less than thirty of the other"
    )


def test_where_nothing_keeps_to_the_limits_the_best_is_taken_and_the_rule_says_so():
    trials = [trial(0, 90, broken=10), trial(1, 40, broken=5), trial(2, 4)]
    chosen, rule = choose(trials, CalibrationSettings())
    assert chosen.number == 0, "four prompts refused fluently are no operating point"
    assert "since none" in rule


def test_a_way_that_never_refuses_can_be_all_there_is():
    chosen, _ = choose([trial(0, 0), trial(1, 0, positions="user")], CalibrationSettings())
    assert chosen.number == 0


def test_ways_that_differ_in_name_only_take_one_place_among_the_finalists():
    same = [trial(0, 90, decay=d, hold=0).model_copy(update={"number": d, "nats": 1.0}) for d in (0, 4, 8)]
    other = trial(9, 80, kl=0.05)
    assert [t.number for t in finalists([*same, other], 2)] == [0, 9]


def test_of_ways_that_differ_in_when_they_end_the_mildest_that_refuses_as_much_is_a_finalist():
    whole, ending, less = trial(0, 90, kl=2.0, hold=0), trial(1, 90, kl=0.5, hold=16), trial(2, 80, kl=0.1, hold=8)
    assert [t.number for t in finalists([whole, ending, less, trial(3, 85, dose=1.1)], 3)] == [1, 3, 2]


def test_a_dose_with_some_to_spare_is_a_finalist_beside_one_that_is_just_enough():
    enough, spare = trial(0, 90, kl=0.001, dose=0.9), trial(1, 90, kl=0.01).model_copy(update={"nats": 1.0})
    worse = trial(2, 60, kl=0.0001)
    assert pareto_front([enough, spare, worse]) == [enough, worse]
    assert [t.number for t in finalists([enough, spare, worse], 2)] == [0, 1]
