"""What is deployed, read without an engine: nothing here runs a container, and nothing claims to."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from cyclopts import App

from demur.cli import app
from demur.errors import SettingsError
from demur.server.impact import ImpactCard
from demur.server.keys import Keys
from demur.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNIT = (ROOT / "deploy" / "demur.service").read_text()
FLAGS = {f"--{name.replace('_', '-')}" for name in ServerSettings.model_fields} | {"--policy", "--sae", "--model"}


def words_of_dockerfile() -> list[str]:
    entry, command = (re.search(rf"^{name} (\[.*\])$", DOCKERFILE, re.M) for name in ("ENTRYPOINT", "CMD"))
    assert entry is not None
    assert command is not None
    return [*yaml.safe_load(entry[1]), *yaml.safe_load(command[1])]


def words_of_unit() -> list[str]:
    line = next(line for line in UNIT.splitlines() if line.startswith("ExecStart="))
    return line.removeprefix("ExecStart=").split()


@pytest.mark.parametrize("words", [words_of_dockerfile(), words_of_unit()], ids=["Dockerfile", "unit"])
def test_what_is_started_is_a_command_of_ours_with_keys_and_card(words):
    assert words[0].endswith("demur")
    assert words[1] == "serve"
    assert isinstance(app["serve"], App)
    flags = {w for w in words if w.startswith("--")}
    assert flags <= FLAGS
    assert {"--keys", "--impact", "--host"} <= flags


def test_the_image_copies_what_is_there_and_runs_as_nobody_special():
    for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert re.search(r"^USER demur$", DOCKERFILE, re.M)
    assert DOCKERFILE.index("USER demur") < DOCKERFILE.index("ENTRYPOINT")
    extra = re.search(r"'\.\[(\w+)\]'", DOCKERFILE)
    assert extra is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(p.startswith("uvicorn") for p in project["optional-dependencies"][extra[1]])
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)


def test_compose_has_a_server_and_a_healthy_database_behind_it():
    server, database = COMPOSE["services"]["demur"], COMPOSE["services"]["db"]
    assert server["depends_on"]["db"]["condition"] == "service_healthy"
    assert server["environment"]["DEMUR_STORE"].startswith("postgresql://")
    assert "healthcheck" in database
    assert all(p.startswith("127.0.0.1:") for p in server["ports"])
    assert "ports" not in database
    used = {s if isinstance(s, str) else s["source"] for svc in (server, database) for s in svc["secrets"]}
    assert used == set(COMPOSE["secrets"])
    named = {v.split(":")[0] for svc in (server, database) for v in svc["volumes"] if not v.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].removeprefix("./") in ignored
    drain = ServerSettings().drain
    assert int(server["stop_grace_period"].removesuffix("s")) > drain
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    assert stop is not None
    assert int(stop[1]) > drain


def test_the_examples_are_refused_until_they_are_filled_in(tmp_path):
    with pytest.raises(SettingsError, match="sha256"):
        Keys.load(ROOT / "deploy" / "keys.example.toml")
    with pytest.raises(SettingsError, match="users"):
        ImpactCard.load(ROOT / "deploy" / "impact.example.toml")
    keys = (ROOT / "deploy" / "keys.example.toml").read_text()
    for i in range(3):
        keys = keys.replace('sha256 = ""', f'sha256 = "{str(i) * 64}"', 1)
    (tmp_path / "keys.toml").write_text(keys)
    assert [k.role for k in Keys.load(tmp_path / "keys.toml").keys] == ["user", "reviewer", "operator"]
    card = (ROOT / "deploy" / "impact.example.toml").read_text()
    (tmp_path / "impact.toml").write_text(
        card.replace('users = ""', 'users = "A course."').replace('reviewer = ""', 'reviewer = "A desk."')
    )
    assert ImpactCard.load(tmp_path / "impact.toml").level == "standard"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(tmp_path):
    # The program need not be installed here.
    (tmp_path / "demur.service").write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", UNIT))
    made = subprocess.run(["systemd-analyze", "verify", tmp_path / "demur.service"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
