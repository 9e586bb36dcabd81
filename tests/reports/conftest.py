"""One small run with its report, for all tests of the room."""

from pathlib import Path

import pytest

from demur.files import write_jsonl
from demur.reports.page import write_report
from tests.reports.small import transcripts, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and its report."""
    home = tmp_path_factory.mktemp("runs")
    write_run(home / "run", transcripts())
    write_jsonl(home / "test-log.jsonl", [{"set": "small", "policy_hash": h, "run": "r"} for h in ("a", "b", "b")])
    write_report(home / "run")
    return home / "run"
