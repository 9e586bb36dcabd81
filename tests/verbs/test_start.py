"""`demur --help` answers at once: nothing heavy is imported until a verb needs it."""

import subprocess
import sys

import pytest

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
