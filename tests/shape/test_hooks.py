"""One file owns hooks, one opens checkpoints of torch, and nothing runs what a file holds."""

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "demur"


def test_hooks_are_registered_in_one_file_only():
    owners = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if "register_forward" in p.read_text()}
    assert owners == {"models/hooks.py"}


def test_nothing_is_unpickled():
    text = {p.relative_to(SOURCE).as_posix(): p.read_text() for p in SOURCE.rglob("*.py")}
    loads = {where: re.findall(r"torch\.load\(.*", body) for where, body in text.items() if "torch.load" in body}
    assert list(loads) == ["sae/exchange/dictionary_learning.py"]
    assert [("weights_only=True" in call) for call in loads["sae/exchange/dictionary_learning.py"]] == [True]
    arrays = {where: re.findall(r"np\.load\(.*", body) for where, body in text.items() if "np.load" in body}
    assert all("allow_pickle=False" in call for calls in arrays.values() for call in calls)
    rest = "".join(text.values()).replace("allow_pickle=False", "").replace("unpickle", "")
    assert "pickle" not in rest
