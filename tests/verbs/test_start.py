"""`demur --help` answers at once: nothing heavy is imported until a verb needs it."""

import contextlib
import importlib
import inspect
import json
import subprocess
import sys

import pytest
from pydantic import BaseModel

from demur.cli import VERBS, main

HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "altair", "statsmodels")


def test_help_imports_nothing_heavy_and_names_every_verb():
    code = (
        "import sys; sys.argv = ['demur', '--help']\n"
        "import demur.cli\n"
        "try: demur.cli.main()\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "heavy: []" in out
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_has_examples_of_it(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demur", verb, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    _, _, examples = capsys.readouterr().out.partition("Examples:")
    assert f"demur {verb}" in examples


@pytest.mark.parametrize("verb", VERBS)
def test_settings_have_the_defaults_of_their_class_and_are_flags_only(verb):
    """Once one flag of some settings is given, cyclopts takes the others from the class, not from the default given."""
    module, _, name = VERBS[verb][0].partition(":")
    for parameter in inspect.signature(getattr(importlib.import_module(module), name)).parameters.values():
        if isinstance(parameter.default, BaseModel):
            assert parameter.annotation.__origin__ is type(parameter.default)
            assert parameter.default == type(parameter.default)()
            assert parameter.kind is parameter.KEYWORD_ONLY


def test_a_call_knows_nothing_of_the_config_of_one_before_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "sets.toml").write_text('[sets]\nsplit = "validation"\n')
    said = {}
    for folder, config in (("there", ["-c", "sets.toml"]), (".", [])):
        monkeypatch.chdir(tmp_path / folder)  # where the first one's file is not
        monkeypatch.setattr(sys, "argv", ["demur", "sets", "demur", "--json", *config])
        with contextlib.suppress(SystemExit):
            main()
        said[folder] = json.loads(capsys.readouterr().out)["origin"]["split"]
    assert said == {"there": "validation", ".": "test"}
