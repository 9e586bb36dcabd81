"""Keys, roles, rates, the impact card: who is let in, and what has to be there before anybody is."""

import hashlib

import pytest

from demur.errors import DemurError, SettingsError
from demur.server.impact import ImpactCard
from demur.server.keys import Keys
from demur.server.run import permits
from demur.server.settings import ServerSettings
from tests.server.conftest import asked

SECRETS = {"user": "key-of-a-user", "reviewer": "key-of-a-reviewer", "operator": "key-of-an-operator"}
CARD = {"users": "Students, about 200.", "reviewer": "Safety desk, two days.", "retention_days": 30}


def keys() -> Keys:
    return Keys.model_validate(
        {
            "keys": [
                {"name": role, "role": role, "sha256": hashlib.sha256(s.encode()).hexdigest()}
                for role, s in SECRETS.items()
            ]
        }
    )


def with_key(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_roles_may_what_those_below_may_and_no_more(kitchen, go):
    async def work():
        async with kitchen.open("none", keys=keys()) as client:
            for secret, status in [("wrong", 401), ("", 401), *((s, 200) for s in SECRETS.values())]:
                got = await client.post("/v1/chat/completions", json=asked(), headers=with_key(secret))
                assert got.status_code == status
            assert (await client.post("/v1/chat/completions", json=asked())).status_code == 401
            for path, statuses in {"/v1/models": (200, 200, 200), "/metrics": (403, 403, 200)}.items():
                for secret, status in zip(SECRETS.values(), statuses, strict=True):
                    got = await client.get(path, headers=with_key(secret))
                    assert got.status_code == status, (path, secret)
            error = (await client.get("/metrics", headers=with_key(SECRETS["user"]))).json()["error"]
            assert error["type"] == "permission_error"
            assert (await client.get("/healthz")).status_code == 200

    go(work())


def test_a_key_has_its_rate_and_is_told_when_to_come_back(kitchen, go):
    async def work():
        async with kitchen.open("none", keys=keys(), rate=3) as client:
            body = asked(max_tokens=1)
            got = [
                await client.post("/v1/chat/completions", json=body, headers=with_key(SECRETS["user"]))
                for _ in range(5)
            ]
            assert [g.status_code for g in got] == [200, 200, 200, 429, 429]
            assert 1 <= int(got[-1].headers["retry-after"]) <= 20
            other = await client.post("/v1/chat/completions", json=body, headers=with_key(SECRETS["reviewer"]))
            assert other.status_code == 200

    go(work())


def test_the_card_bounds_what_a_request_may_name(kitchen, go):
    card = ImpactCard(**CARD, allowed=("standard",))

    async def work():
        async with kitchen.open("kinds", card=card) as client:
            ids = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
            assert ids == ["tiny-llama:standard"]
            assert (await client.post("/v1/chat/completions", json=asked(model="tiny-llama:off"))).status_code == 404
            off = asked(demur={"level": "off"})
            assert (await client.post("/v1/chat/completions", json=off)).status_code == 404
            kind = asked(demur={"kinds": {"weapons": "off"}})
            assert (await client.post("/v1/chat/completions", json=kind)).status_code == 404

    go(work())


def test_a_card_that_wants_what_the_policy_cannot_is_refused(kitchen):
    with pytest.raises(SettingsError, match="level strict"):
        kitchen.serving("kinds", card=ImpactCard(**CARD, level="strict"))
    with pytest.raises(DemurError, match="one level alone"):
        kitchen.serving("kinds", card=ImpactCard(**CARD, hazards={"weapons": "strict"}))


@pytest.mark.parametrize("lacking", [{"keys"}, {"impact"}, {"keys", "impact"}])
def test_others_are_let_in_with_keys_and_card_alone(tmp_path, lacking):
    given = {name: tmp_path / f"{name}.toml" for name in {"keys", "impact"} - lacking}
    with pytest.raises(SettingsError, match="keys and an impact card"):
        permits(ServerSettings(host="0.0.0.0", **given))


GOOD_KEY = f'[[keys]]\nname = "a"\nrole = "user"\nsha256 = "{"0" * 64}"\n'
GOOD_CARD = 'users = "Students."\nreviewer = "Safety desk."\nretention_days = 30\n'
BROKEN = {
    "no file": (None, GOOD_CARD, "does not exist"),
    "no keys": ("keys = []\n", GOOD_CARD, "at least 1"),
    "a role that is none": (GOOD_KEY.replace('"user"', '"king"'), GOOD_CARD, "role"),
    "a key in the clear": (GOOD_KEY.replace("0" * 64, "secret"), GOOD_CARD, "sha256"),
    "one name twice": (GOOD_KEY * 2, GOOD_CARD, "the same name"),
    "not TOML": ("= =", GOOD_CARD, "not a TOML file"),
    "card without reviewer": (GOOD_KEY, 'users = "S"\nretention_days = 1\n', "reviewer"),
    "card not filled in": (GOOD_KEY, GOOD_CARD.replace("Students.", "TODO"), "is not filled in"),
    "card with another key": (GOOD_KEY, GOOD_CARD + "retention = 3\n", "did you mean `retention_days`?"),
    "card whose level is not allowed": (GOOD_KEY, GOOD_CARD + 'level = "off"\n', "not among the allowed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_not_right_are_one_sentence(tmp_path, case):
    key_text, card_text, words = BROKEN[case]
    for name, text in (("keys", key_text), ("impact", card_text)):
        if text is not None:
            (tmp_path / f"{name}.toml").write_text(text)
    settings = ServerSettings(host="0.0.0.0", keys=tmp_path / "keys.toml", impact=tmp_path / "impact.toml")
    with pytest.raises(DemurError, match=words):
        permits(settings)


def test_good_files_are_taken(tmp_path):
    (tmp_path / "keys.toml").write_text(GOOD_KEY)
    (tmp_path / "impact.toml").write_text(GOOD_CARD)
    found, card = permits(ServerSettings(host="0.0.0.0", keys=tmp_path / "keys.toml", impact=tmp_path / "impact.toml"))
    assert found is not None
    assert card.retention_days == 30
