"""One file owns hooks."""

from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "demur"


def test_hooks_are_registered_in_one_file_only():
    owners = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if "register_forward" in p.read_text()}
    assert owners == {"models/hooks.py"}


def test_nothing_is_unpickled():
    text = "".join(p.read_text() for p in SOURCE.rglob("*.py"))
    assert "torch.load" not in text
    assert "pickle" not in text.replace("unpickle", "")
