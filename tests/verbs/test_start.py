"""`demur --help` answers at once: nothing heavy is imported until a verb needs it."""

import subprocess
import sys

from demur.cli import VERBS

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
