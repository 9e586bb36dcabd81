"""The README runs: its Python as it stands, its commands as they are named, its file tree as it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from demur.cli import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.embedded
def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip()


def test_every_verb_is_named_and_no_other():
    assert {verb for verb in re.findall(r"\bdemur ([a-z-]+)", README) if verb != "makes"} <= set(VERBS)
    assert set(VERBS) - {"demo"} <= set(re.findall(r"`demur ([a-z-]+)", README))


def test_the_rooms_in_the_file_tree_are_there():
    rooms = {p.name for p in (ROOT / "src" / "demur").iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    tree = README[README.index("src/demur/") :]
    assert all(f"{room}/" in tree for room in rooms if any((ROOT / "src/demur" / room).glob("[a-z]*")))


def test_no_figure_is_left_out():
    assert not re.search(r"\b(?:TODO|TBD|XX+|[A-Z]+_OUTPUT|RESULTS)\b", README)
