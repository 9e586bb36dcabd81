"""Features kept: what acts stays as it was found, what reads harm is fitted anew."""

import pytest

from demur.errors import PolicyError, SettingsError
from demur.features.effect import Bench
from demur.features.find import find
from demur.features.settings import FindSettings
from demur.records import Feature, FeatureSet, Prompt, PromptSet
from tests import tiny


def prompts(name: str, n: int) -> PromptSet:
    return PromptSet(
        name=name,
        rows=tuple(
            Prompt(id=f"{word} {i}", prompt=f"{word} {i}", label=label, source="s", kind=kind)
            for i in range(n)
            for word, label, kind in (("Poison the well", "harmful", "harmful"), ("Water the rose", "benign", "plain"))
        ),
    )


def before(bench: Bench, **changed) -> FeatureSet:
    features = tuple(
        Feature(id=i, role=role, level=2.0 + i, scores={"weight": 1.0})
        for i, role in ((3, "actuator"), (8, "actuator"), (5, "sensor"))
    )
    about = {"model": "tiny", "model_hash": bench.lm.hash, "sae": "s", "sae_hash": bench.sae.hash}
    about |= {"site": bench.sae.config.site, "method": "contrast", "how": "as it was", "features": features}
    return FeatureSet(**about | changed)


def test_actuators_stay_and_sensors_are_fitted_anew(tmp_path):
    bench = Bench(tiny.lm(), tiny.sae())
    settings = FindSettings(method="contrast", sensors=4, dosed=2, each_kind=4)
    kept = before(bench)
    found = find(bench, prompts("train", 20), prompts("validation", 4), settings, "s", tmp_path, kept=kept)
    assert not list(tmp_path.iterdir())  # the streams were kept only for a run that is stopped
    assert [(f.id, f.level) for f in found.actuators()] == [(3, 5.0), (8, 10.0)]
    assert found.how == "as it was" and found.kinds == ()
    assert found.sensors() and [f.id for f in found.sensors()] != [5]
    assert all("auc" in f.scores for f in found.sensors())


def test_a_source_left_out_is_as_if_it_had_not_been_there():
    bench, kept = Bench(tiny.lm(), tiny.sae()), before(Bench(tiny.lm(), tiny.sae()))
    settings = FindSettings(method="contrast", sensors=4, dosed=2, each_kind=4)
    whole, validation = prompts("train", 30), prompts("validation", 4)
    rows = tuple(r.model_copy(update={"source": "other" if i % 3 == 0 else "s"}) for i, r in enumerate(whole.rows))
    mixed, rest = whole.model_copy(update={"rows": rows}), tuple(r for r in rows if r.source == "s")
    alone = find(bench, whole.model_copy(update={"rows": rest}), validation, settings, "s", kept=kept)
    left = find(bench, mixed, validation, settings.model_copy(update={"leave_out": ("other",)}), "s", kept=kept)
    assert left.how.removeprefix(alone.how) == " Training prompts of other were left out."
    assert left.model_copy(update={"how": alone.how}) == alone
    assert find(bench, mixed, validation, settings, "s", kept=kept) != alone
    with pytest.raises(SettingsError, match=r"no training prompt is of the source 'its'.*there are other, s"):
        find(bench, mixed, validation, settings.model_copy(update={"leave_out": ("its",)}), "s", kept=kept)


@pytest.mark.parametrize(
    "other", [{"model_hash": "other"}, {"sae_hash": "other"}, {"method": "effect"}, {"features": ()}]
)
def test_features_of_another_kind_are_not_kept(other):
    bench = Bench(tiny.lm(), tiny.sae())
    with pytest.raises(PolicyError, match="the features to keep"):
        find(
            bench,
            prompts("train", 4),
            prompts("validation", 4),
            FindSettings(method="contrast"),
            "s",
            kept=before(bench, **other),
        )
