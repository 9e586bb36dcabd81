"""Levels: budgets by stratum made thresholds, against naive counts; which stratum binds, and what that costs."""

import pytest

from demur.calibration.levels import set_levels
from demur.calibration.scores import Score
from demur.calibration.settings import CalibrationSettings
from demur.calibration.strata import strata, stratum, with_a_chat_stratum, with_a_wrapped_stratum
from demur.errors import PromptError, SettingsError
from demur.records import Prompt, PromptSet, evenly_of


def row(i: int, label: str = "benign", **about) -> Prompt:
    return Prompt(id=str(i), prompt=f"request {i}", label=label, **about)


def validation(lookalikes: float = 3.0) -> tuple[PromptSet, list[Score]]:
    """200 chats that score 0 to 2, 200 look-alikes up to `lookalikes`, 50 harmful prompts of two sources up to 6."""
    rows, scores = [], []
    for i in range(200):
        rows += [row(i, kind="plain", category="chat"), row(1000 + i, kind="lookalike")]
        scores += [Score(2 * i / 200, "theft"), Score(lookalikes * i / 200, "weapons" if i % 2 else "theft")]
    for i in range(50):
        rows.append(row(2000 + i, "harmful", kind="harmful", source="a" if i < 20 else "b"))
        scores.append(Score(6 * i / 50, "weapons"))
    return PromptSet(name="v", rows=tuple(rows)), scores


def test_a_stratum_is_what_the_row_says_its_kind_or_what_a_plain_prompt_is_about():
    assert stratum(row(1, kind="plain", category="code")) == "code"
    assert stratum(row(1, kind="plain", category="knowledge")) == "plain"
    assert stratum(row(1)) == "plain"
    assert stratum(row(1, kind="offensive", category="insult_humour")) == "offensive"
    assert stratum(row(1, kind="plain", extra={"stratum": "poetry"})) == "poetry"
    assert list(strata(validation()[0])) == ["chat", "lookalike"]


def test_wrapped_prompts_are_a_stratum_where_there_are_enough_and_have_their_own_budget():
    prompts = validation()[0]
    assert with_a_wrapped_stratum(prompts, 0.25) is prompts
    made = with_a_wrapped_stratum(prompts, 2.0)
    assert made.rows[: len(prompts.rows)] == prompts.rows
    more = made.rows[len(prompts.rows) :]
    assert {row.kind for row in more} == {"plain", "harmful"}  # no look-alikes
    assert len(strata(made)["wrapped"]) == sum(row.label == "benign" for row in more) >= 200
    assert CalibrationSettings().budget_of("standard", "wrapped") == 0.03


def test_chats_are_a_stratum_where_there_are_enough_and_have_a_plain_budget():
    prompts = validation()[0]
    assert with_a_chat_stratum(prompts, 0.25) is prompts
    made = with_a_chat_stratum(prompts, 2.0)
    more = made.rows[len(prompts.rows) :]
    assert len(strata(made)["chats"]) == sum(row.kind == "plain" for row in more) >= 200
    assert {row.label for row in more if row.kind == "lookalike"} == {"benign"}
    assert len(strata(made)["lookalike"]) > len(strata(prompts)["lookalike"])
    assert CalibrationSettings().budget_of("standard", "chats") == 0.01


def test_every_level_keeps_its_budgets_and_is_laxer_than_the_next():
    prompts, scores = validation()
    settings = CalibrationSettings()
    levels = set_levels(scores, prompts, settings)
    assert list(levels) == ["relaxed", "standard", "strict"]
    lines = [s.level.threshold for s in levels.values()]
    assert lines == sorted(lines, reverse=True) and len(set(lines)) == 3
    for name, s in levels.items():
        for kind, rows in strata(prompts).items():
            opened = sum(scores[i].score >= s.level.threshold for i in rows)
            assert s.opened[kind].k == opened
            assert opened / len(rows) <= settings.budget_of(name, kind)
        bad = [sc.score for sc, r in zip(scores, prompts.rows, strict=True) if r.label == "harmful"]
        assert s.harmful.k == sum(b >= s.level.threshold for b in bad)
        assert sum(r.k for r in s.by_source.values()) == s.harmful.k
        assert sum(rate.n for of in s.by_kind.values() for rate in of.values()) == len(prompts.rows)
        assert s.binds in s.level.about


def test_a_plain_stratum_that_binds_is_named_with_what_it_costs():
    prompts, scores = validation(lookalikes=1.0)
    standard = set_levels(scores, prompts, CalibrationSettings())["standard"]
    assert standard.binds == "chat"
    assert "chat sets the threshold" in standard.level.about
    assert standard.costs["threshold"] == standard.promises["lookalike"].threshold < standard.level.threshold
    assert standard.costs["harmful"] > standard.harmful.rate
    other = set_levels(*reversed(validation()), CalibrationSettings())["standard"]
    assert other.binds == "lookalike" and not other.costs


def test_wrapped_prompts_are_no_plain_stratum_and_bind_for_themselves():
    prompts, scores = validation(lookalikes=1.0)
    wrapped = [row(5000 + i, kind="plain", extra={"stratum": "wrapped"}) for i in range(200)]
    more = prompts.model_copy(update={"rows": (*prompts.rows, *wrapped)})
    binding = set_levels([*scores, *(Score(4.0, None) for _ in wrapped)], more, CalibrationSettings())["standard"]
    assert binding.binds == "wrapped" and not binding.costs
    under = set_levels([*scores, *(Score(1.5, None) for _ in wrapped)], more, CalibrationSettings())["standard"]
    assert under.binds == "chat"
    assert under.costs["threshold"] == under.promises["wrapped"].threshold  # higher than what look-alikes ask for


def test_a_stratum_too_small_for_its_promise_is_named():
    prompts, scores = validation()
    few = PromptSet(name="v", rows=(*prompts.rows, *(row(9000 + i, kind="mathematics") for i in range(30))))
    levels = set_levels([*scores, *(Score(0.1, "theft") for _ in range(30))], few, CalibrationSettings())
    assert "too few prompts for the promise: mathematics (30 of 99)" in levels["standard"].level.about
    assert not levels["standard"].promises["mathematics"].kept


def test_budgets_are_set_by_table_and_the_plain_ones_by_one_figure():
    settings = CalibrationSettings(budget=0.02, budgets={"strict": {"lookalike": 0.5, "code": 0.001}})
    assert [settings.budget_of(level, "chat") for level in ("relaxed", "standard", "strict")] == [0.01, 0.02, 0.04]
    assert settings.budget_of("strict", "lookalike") == 0.5
    assert settings.budget_of("strict", "code") == 0.001
    assert settings.budget_of("standard", "offensive") == 0.2
    assert CalibrationSettings(budgets={"relaxed": {"plain": 0.003}}).budget_of("relaxed", "mathematics") == 0.003


def test_what_is_not_there_is_named():
    with pytest.raises(SettingsError, match="did you mean lookalike"):
        CalibrationSettings(budgets={"strict": {"look-alike": 0.2}}).check(["chat"])
    with pytest.raises(SettingsError, match="did you mean strict"):
        CalibrationSettings(level_doses={"strickt": 1.1}).check(["chat"])
    with pytest.raises(PromptError, match="no benign prompts"):
        strata(PromptSet(name="v", rows=(row(1, "harmful"),)))


def test_rows_are_taken_evenly_of_groups():
    groups = [list(range(5)), list(range(100, 200)), list(range(300, 400))]
    taken = evenly_of(groups, 45)
    assert len(taken) == len(set(taken)) == 45
    assert [sum(t in g for t in taken) for g in groups] == [5, 20, 20]
    assert sorted(evenly_of(groups, 1000)) == sorted(x for g in groups for x in g)
    assert evenly_of(groups, 1) in ([0], [100], [300])
