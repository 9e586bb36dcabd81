"""Policies on offer: read again when their files change, without dropping anybody."""

import asyncio
import os
from pathlib import Path

import pytest

from demur.errors import SettingsError
from demur.records import Level, Policy
from demur.server.offer import levels_of
from tests.server.conftest import asked
from tests.server.test_routes import said


def replaced(path: Path, text: str) -> None:
    """Another text in one step, a little later as far as the file system can tell."""
    then = path.stat().st_mtime_ns if path.exists() else 0
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(then + 1_000_000, max(new.stat().st_mtime_ns, then + 1_000_000)))
    new.replace(path)


def test_a_changed_file_is_read_again_and_no_request_is_dropped(kitchen, go, monkeypatch):
    monkeypatch.setattr("demur.server.app.WATCH", 0.02)
    path = Path(kitchen.path("always"))

    async def work():
        async with kitchen.open("always", rows=2, queue=64) as client:
            before = said(str(path), "Hi")[0]
            first = (await client.post("/v1/chat/completions", json=asked())).json()
            assert first["choices"][0]["message"]["content"] == before
            under_way = [asyncio.create_task(client.post("/v1/chat/completions", json=asked())) for _ in range(12)]
            await asyncio.sleep(0.05)
            other = Policy.load(path).at_dose(-3.0).model_copy(update={"name": "always"})
            other.save(kitchen.folder / "other.toml")
            replaced(path, (kitchen.folder / "other.toml").read_text())
            while client.serving.offer.reloads["read"] == 0:
                await asyncio.sleep(0.02)
            after = said(str(path), "Hi")[0]
            assert after != before
            got = (await client.post("/v1/chat/completions", json=asked())).json()
            assert got["choices"][0]["message"]["content"] == after
            assert got["demur"]["policy_hash"] == Policy.load(path).hash != first["demur"]["policy_hash"]
            for answer in await asyncio.gather(*under_way):
                assert answer.status_code == 200
                text, hash_ = answer.json()["choices"][0]["message"]["content"], answer.json()["demur"]["policy_hash"]
                assert text == (before if hash_ == first["demur"]["policy_hash"] else after)

    go(work())


def test_a_file_that_is_broken_leaves_the_policy_as_it_was(kitchen, go, monkeypatch, caplog):
    monkeypatch.setattr("demur.server.app.WATCH", 0.02)
    path = Path(kitchen.path("kinds"))
    good = path.read_text()
    other = good.replace('model_hash = "', 'model_hash = "f')

    async def work():
        async with kitchen.open("kinds") as client:
            for number, text in enumerate(("this is = = not TOML", "", other, good[: len(good) // 2]), 1):
                replaced(path, text)
                while client.serving.offer.reloads["refused"] < number:
                    await asyncio.sleep(0.02)
                got = await client.post("/v1/chat/completions", json=asked())
                assert got.status_code == 200
                assert got.json()["demur"]["policy"] == "kinds"
            path.unlink()
            while client.serving.offer.reloads["refused"] < 5:
                await asyncio.sleep(0.02)
            assert (await client.post("/v1/chat/completions", json=asked())).status_code == 200
            replaced(path, good)
            while client.serving.offer.reloads["read"] < 1:
                await asyncio.sleep(0.02)

    with caplog.at_level("WARNING", "demur.server"):
        go(work())
    assert len([r for r in caplog.records if "the one before stays" in r.getMessage()]) == 5


def test_an_included_file_is_watched_too(kitchen):
    (kitchen.folder / "mine.toml").write_text('include = "kinds.toml"\nname = "mine"\n')
    serving = kitchen.serving("mine")
    before = serving.offer.pick("tiny-llama").hash
    path = Path(kitchen.path("kinds"))
    Policy.load(path).at_dose(2.0).save(kitchen.folder / "other.toml")
    replaced(path, (kitchen.folder / "other.toml").read_text())
    serving.offer.refresh()
    assert serving.offer.pick("tiny-llama").hash != before


def test_levels_are_offered_from_the_mildest_on(kitchen):
    path = Path(kitchen.path("kinds"))
    levels = {"strict": Level(threshold=-99.0), "standard": Level(threshold=-9.0), "relaxed": Level(threshold=99.0)}
    policy = Policy.load(path).model_copy(update={"levels": levels})
    policy.save(path)
    assert levels_of(policy) == ["off", "relaxed", "standard", "strict"]
    offer = kitchen.serving("kinds").offer
    assert offer.ids() == [f"tiny-llama:{level}" for level in ("off", "relaxed", "standard", "strict")]
    assert offer.pick("tiny-llama").level == "standard"
    picked = offer.pick("tiny-llama:relaxed", kinds={"weapons": "strict"})
    assert picked.policy.gate is not None
    assert picked.policy.gate.threshold == 99.0
    assert picked.policy.gate.thresholds == {"weapons": -99.0}
    assert offer.pick("tiny-llama:relaxed", kinds={"weapons": "strict"}) is picked


def test_a_level_is_not_a_policy(kitchen):
    with pytest.raises(SettingsError, match="its levels are model ids"):
        kitchen.serving(f"{kitchen.path('kinds')}:off")


def test_two_policies_of_one_name_are_refused(kitchen):
    with pytest.raises(SettingsError, match="two policies"):
        kitchen.serving("kinds", "kinds")


def test_of_what_requests_choose_only_so_much_is_kept(kitchen, monkeypatch):
    monkeypatch.setattr("demur.server.offer.KEPT", 2)
    path = Path(kitchen.path("kinds"))
    levels = {"strict": Level(threshold=-99.0), "standard": Level(threshold=-9.0)}
    Policy.load(path).model_copy(update={"levels": levels}).save(path)
    on_offer = kitchen.serving("kinds").offer
    picked = [on_offer.pick("tiny-llama", kinds={"weapons": level}) for level in ("off", "standard", "off", "standard")]
    picked += [on_offer.pick("tiny-llama", level=level) for level in ("off", "standard")]
    assert len(on_offer.entries[on_offer.usual].picked) == 2
    assert on_offer.pick("tiny-llama", kinds={"weapons": "off"}).hash == picked[0].hash
