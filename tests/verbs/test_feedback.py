"""`demur feedback`: from an appeal to a file that `demur calibrate` takes."""

import json

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `server` is not installed")

from demur.records import PromptSet
from demur.server.feedback.store import Store
from tests.server.feedback.conftest import answer
from tests.verbs.test_bad_input import run


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMUR_STORE", str(tmp_path / "feedback.db"))
    store = Store.open(tmp_path / "feedback.db")
    for number in (1, 2, 3):
        store.keep(answer(number))
    for number in (1, 2):
        store.appeal("ann", f"chatcmpl-{number}", f"Argument {number}.")
    store.close()
    return tmp_path


def test_from_the_queue_to_a_prompt_set(home, monkeypatch, capsys):
    def said(*words):
        code, out, err = run(monkeypatch, capsys, "feedback", *words, "--json")
        assert code == 0, err
        return json.loads(out)

    queue = said("list", "--state", "open")["appeals"]
    assert [c["answer"]["id"] for c in queue] == ["chatcmpl-1", "chatcmpl-2"]
    first, second = (c["appeal"]["id"] for c in queue)
    assert said("show", first)["appeal"]["argument"] == "Argument 1."
    assert said("resolve", first, "--decision", "upheld", "--note", "Yes.")["appeal"]["state"] == "upheld"
    said("resolve", second, "--decision", "rejected")
    counts = said("statistics")
    assert (counts["every"]["upheld"], counts["every"]["rejected"], counts["every"]["refused"]) == (1, 1, 3)
    made = said("export", "--out", home / "appeals.jsonl")
    assert (made["benign"], made["harmful"]) == (1, 1)
    assert [r.label for r in PromptSet.load(home / "appeals.jsonl").rows] == ["benign", "harmful"]
    assert said("delete", "--owner", "ann")["deleted"] == 3


def test_it_reads_as_text_too(home, monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "feedback", "list")
    assert "How do I kill process 1?" in out
    appeal = out.splitlines()[1].split()[0]
    _, out, _ = run(monkeypatch, capsys, "feedback", "show", appeal)
    assert "argument: Argument 1." in out
    _, out, _ = run(monkeypatch, capsys, "feedback", "statistics")
    assert "cybercrime" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show"], "demur feedback show ID"),
        (["resolve", "appeal-1"], "--decision upheld"),
        (["resolve", "appeal-1", "--decision", "upheld"], "no appeal 'appeal-1'"),
        (["delete"], "--owner NAME"),
        (["export"], "demur feedback resolve"),
        (["list", "--store", "nowhere.db"], "there is no store at nowhere.db"),
        (["list", "--store", "mysql://me:secret@h/d"], "cannot be in mysql"),
    ],
)
def test_what_is_missing_is_one_sentence(home, monkeypatch, capsys, words, says):
    code, out, err = run(monkeypatch, capsys, "feedback", *words)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert says in err
    assert "secret" not in err
