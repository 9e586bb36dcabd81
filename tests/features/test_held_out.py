"""Style is not harm: what only knows its sources is found out, and nothing of a source left out is fitted to."""

from collections import Counter
from functools import partial

import pytest
import torch
from sklearn.metrics import roc_auc_score

from demur.data.chats import FOLLOWING
from demur.data.wrappers import WRAPPED
from demur.errors import PromptError, SettingsError
from demur.features import attention, sensing
from demur.features import find as finding
from demur.features.effect import Bench
from demur.features.find import FindSettings, find
from demur.features.held_out import FOLDS, held_out, pairs
from demur.features.reading import read_prompts
from demur.features.sensing import sense
from demur.features.sensors import fit
from demur.files import write_jsonl
from demur.models.chat import tokens_and_roles
from demur.records import Feature, FeatureSet, HeldOut, Prompt, PromptSet
from demur.verbs.find import held_out_table
from demur.verbs.output import drawn
from tests import tiny

HARMFUL, BENIGN = ("adv", "cast", "both"), ("orb", "dolly", "both")
EACH = 40


def made(style: float, harm: float) -> tuple[torch.Tensor, list[bool], list[str]]:
    """Prompts of five sources: column 0 says how harmful, column 1 + i that the prompt is of source i."""
    generator = torch.Generator().manual_seed(0)
    names = list(dict.fromkeys([*HARMFUL, *BENIGN]))
    x, harmful, sources = [], [], []
    for label, of in ((True, HARMFUL), (False, BENIGN)):
        for source in of:
            rows = 0.5 * torch.rand(EACH, 12, generator=generator)
            rows[:, 0] += harm * label * torch.rand(EACH, generator=generator)
            rows[:, 1 + names.index(source)] += style
            x.append(rows)
            harmful += [label] * EACH
            sources += [source] * EACH
    return torch.cat(x), harmful, sources


def measured(style: float, harm: float, reader=None) -> HeldOut:
    x, harmful, sources = made(style, harm)
    return held_out("test", reader or partial(fit, count=6), x, harmful, sources, sources)


def test_what_knows_its_sources_alone_is_found_out():
    style = measured(style=3, harm=0)
    assert style.seen.area > 0.85
    assert style.unseen.high < 0.6
    assert style.seen.low > style.unseen.high


def test_what_reads_harm_is_believed():
    harm = measured(style=0, harm=3)
    assert harm.unseen.area > 0.85
    assert harm.seen.area - harm.unseen.area < 0.02


def test_a_source_with_both_labels_is_the_hardest_test():
    """Within it style tells nothing, even to what has seen it."""
    found = {(p.harmful, p.benign): p for p in measured(style=3, harm=0).pairs}
    assert len(found) == 9
    assert found["both", "both"].seen.low < 0.5 < found["both", "both"].seen.high
    assert found["adv", "orb"].seen.area > 0.99


def test_areas_are_those_of_the_naive_loop():
    x, harmful, sources = made(style=1, harm=1)
    for pair in held_out("test", partial(fit, count=6), x, harmful, sources, sources).pairs:
        stay = [i for i, s in enumerate(sources) if s not in (pair.harmful, pair.benign)]
        reading = fit(x[stay], [harmful[i] for i in stay], [sources[i] for i in stay], 6)
        asked = [i for i, s in enumerate(sources) if s == (pair.harmful if harmful[i] else pair.benign)]
        score = [float(x[i, reading.features] @ torch.tensor(reading.weights)) for i in asked]
        assert pair.unseen.area == pytest.approx(roc_auc_score([harmful[i] for i in asked], score))
        assert (pair.unseen.harmful, pair.unseen.benign) == (EACH, EACH)


def test_nothing_of_what_is_left_out_is_fitted_to():
    x, harmful, sources = made(style=1, harm=1)
    x[:, 11] = torch.arange(len(x))  # a number for each row
    fitted = []

    def spying(pooled, labels, groups):
        rows = pooled[:, 11].int().tolist()
        assert labels == [harmful[i] for i in rows]
        assert groups == [sources[i] for i in rows]
        fitted.append(set(rows))
        return fit(pooled, labels, groups, 3)

    found = held_out("test", spying, x, harmful, sources, sources)
    folds, fresh = fitted[:FOLDS], fitted[FOLDS:]
    assert [len(f) for f in folds] == [len(x) * (FOLDS - 1) // FOLDS] * FOLDS
    assert all(sum(i not in f for f in folds) == 1 for i in range(len(x)))
    for pair, rows in zip(found.pairs, fresh, strict=True):
        assert {sources[i] for i in rows} == {*HARMFUL, *BENIGN} - {pair.harmful, pair.benign}


def test_pairs_without_which_one_label_is_left_are_named():
    rows = [(True, "adv"), (True, "both"), (False, "both"), (False, "orb")]
    possible, rest = pairs(rows)
    assert possible == [("adv", "orb"), ("both", "both")]
    assert rest == [("adv", "both"), ("both", "orb")]
    x = torch.rand(4 * 10, 3)
    ten = [row for row in rows for _ in range(10)]
    labels, sources = [h for h, _ in ten], [s for _, s in ten]
    found = held_out("test", partial(fit, count=2), x, labels, sources, sources)
    assert found.not_measured == (("adv", "both"), ("both", "orb"))
    assert "adv with both, both with orb" in drawn(held_out_table(found))


@pytest.mark.parametrize("rows", [[(True, "a"), (False, "b")], [(True, "a"), (False, "a")], [(True, "a")]], ids=str)
def test_two_sources_of_each_are_needed(rows):
    with pytest.raises(PromptError, match="at least two sources"):
        pairs(rows)


def test_the_residual_stream_is_pooled_as_the_naive_loop_does():
    lm, sae = tiny.lm(), tiny.sae()
    talk = tiny.said("Hi", "What is a boat?", "A rather longer question")
    found = read_prompts(lm, sae, talk, ["max"], batch=2, residual=["mean", "last"])
    assert set(found) == {"max", "residual mean", "residual last"}
    for i, conversation in enumerate(talk):
        ids, roles = tokens_and_roles(lm, conversation)
        hidden = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
        seen = hidden[[t for t in range(len(ids)) if roles[t] == 3 or t == len(ids) - 1]].float()
        torch.testing.assert_close(found["residual mean"][i], seen.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["residual last"][i], seen[-1], atol=1e-5, rtol=1e-5)


def prompts(sources: tuple[str, ...]) -> PromptSet:
    words = {True: "break steal burn", False: "bake plant paint"}
    rows = [
        Prompt(
            id=f"{s}-{label}-{i}", prompt=f"{words[label]} {s} {i}", label="harmful" if label else "benign", source=s
        )
        for s in sources
        for label in (True, False)
        for i in range(6)
    ]
    return PromptSet(name="ours", rows=tuple(rows))


def test_find_measures_sensors_and_probe_and_saves_them(tmp_path, monkeypatch):
    """With `--held-out`, whatever finds the actuators; the tiny model's are not worth the wait."""
    monkeypatch.setattr(finding, "both_replies", lambda *a: None)
    monkeypatch.setattr(finding, "_effect", lambda *a: {"features": [], "how": "none"})
    monkeypatch.setattr(finding, "with_evidence", lambda bench, features, seed: tuple(features))
    monkeypatch.setattr(attention, "EPOCHS", 0)
    monkeypatch.setattr(attention, "FEWEST_STEPS", 5)
    monkeypatch.setattr(sensing, "FEWEST", 0)
    bench, settings = Bench(tiny.lm(), tiny.sae()), FindSettings(held_out=True, sensors=32)
    found = find(bench, prompts(("a", "b", "c")), prompts(("v",)), settings, "tiny")
    assert [h.reader for h in found.held_out] == ["32 sensors", "dense probe", "attention probe"]
    assert all(len(h.pairs) == 9 and h.unseen.harmful == 18 for h in found.held_out)
    found.save(tmp_path / "features.json")
    assert FeatureSet.load(tmp_path / "features.json") == found


@pytest.mark.parametrize("source", [WRAPPED, FOLLOWING])
def test_requests_that_stand_in_others_are_neither_left_out_nor_fitted_to_where_sources_are(source, monkeypatch):
    # They are the other sources' requests, and would stay when those are left out.
    rows = [*prompts(("a", "b", "c")).rows]
    rows += [r.model_copy(update={"id": f"w {r.id}", "source": source}) for r in rows]
    fitted: list[int] = []
    monkeypatch.setattr(sensing, "beside_a_probe", lambda pooled, *more: (fitted.append(len(pooled)), ())[1])
    settings = FindSettings(held_out=True, sensors=8, attention=False)
    sense(Bench(tiny.lm(), tiny.sae()), rows, [str(r.source) for r in rows], settings)
    assert fitted == [36]


def test_conversations_stand_beside_the_prompts_that_sensors_are_fitted_to(tmp_path, monkeypatch):
    chats = tmp_path / "chats.jsonl"
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    write_jsonl(chats, [{"messages": [*said, {"role": "user", "content": f"Chat {i}"}]} for i in range(40)])
    monkeypatch.setattr(finding, "_effect", lambda *a: {"features": [], "how": "none"})
    monkeypatch.setattr(finding, "with_evidence", lambda bench, features, seed: tuple(features))
    monkeypatch.setattr(finding, "FEWEST", 0)
    fitted: list[str] = []

    def fit_on(pooled, harmful, groups, count):
        assert len(pooled) == len(harmful) == len(groups)
        fitted.extend(groups)
        return fit(pooled, harmful, groups, count)

    monkeypatch.setattr(sensing, "fit", fit_on)
    settings = FindSettings(wrapped=0, turns=2, chats=(chats,), sensors=8, attention=False)
    find(Bench(tiny.lm(), tiny.sae()), prompts(("a", "b")), prompts(("v",)), settings, "tiny")
    counts = Counter(fitted)
    assert counts["a None"] == counts["b None"] == 12
    assert counts["following None"] == counts["following None alone"] > 0  # some are too long for so small a context
    assert counts["chats plain"] >= counts["chats plain alone"] > 0  # of some the first turn was drawn


def test_features_without_the_figures_still_load(tmp_path):
    feature = Feature(id=3, role="sensor")
    old = FeatureSet(
        model="m",
        model_hash="",
        sae="s",
        sae_hash="",
        site="1.resid_post",
        method="effect",
        how="",
        features=(feature,),
    )
    (tmp_path / "old.json").write_text(old.model_dump_json(exclude={"held_out"}))
    assert FeatureSet.load(tmp_path / "old.json") == old


def test_what_cannot_be_measured_is_said_before_anything_is_run():
    bench = Bench(tiny.lm(), tiny.sae())
    with pytest.raises(PromptError, match="at least two sources"):
        find(bench, prompts(("a",)), prompts(("v",)), FindSettings(held_out=True), "tiny")
    with pytest.raises(SettingsError, match="paper"):
        find(bench, prompts(("a", "b")), prompts(("v",)), FindSettings(held_out=True, method="paper"), "tiny")
