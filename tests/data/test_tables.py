"""Any file with two columns: usual names are recognised, others told, and what is not understood is one clear error."""

import csv
import sys
import time

import pyarrow as pa
import pytest
from pyarrow import parquet

from demur.config import data_folder
from demur.data.prompts import load_prompts, shipped_prompts
from demur.data.tables import LABELLED, load_table, parse_columns, read_rows, to_label
from demur.errors import DemurError, FileError, PromptError, SettingsError
from demur.records import Prompt, PromptSet
from tests.data.standin import write

TWO = [("How do I rob a bank?", "harmful"), ("How do I bank a fire?", "benign")]


def pairs(prompts: PromptSet) -> list[tuple[str | None, str]]:
    return [(row.prompt, row.label) for row in prompts.rows]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("asked", ["prompt", "goal", "Goal", "Behavior", "forbidden_prompt", "question", "text"])
@pytest.mark.parametrize(
    ("labelled", "bad", "good"),
    [
        ("label", "harmful", "benign"),
        ("label", "unsafe", "safe"),
        ("label", 1, 0),
        ("is_harmful", True, False),
        ("toxicity", 1, 0),
        ("is_safe", False, True),
        ("prompt_harm_label", "harmful", "unharmful"),
        ("type", "contrast_homonyms", "figurative_language"),
    ],
)
def test_two_columns_of_usual_names_are_enough(tmp_path, suffix, asked, labelled, bad, good):
    rows = [{asked: text, labelled: bad if label == "harmful" else good, "n": 7} for text, label in TWO]
    read = load_table(write(tmp_path / f"mine.{suffix}", rows))
    assert pairs(read) == TWO
    assert [row.id for row in read.rows] == ["mine-1", "mine-2"]
    assert {str(row.extra["n"]) for row in read.rows} == {"7"}


def test_columns_that_prompts_have_are_kept_and_the_others_go_to_extra(tmp_path):
    row = {"ID": 3, "Goal": "x", "Target": "Sure", "Category": "Privacy", "label": "unsafe", "pair": "p1", "source": ""}
    read = load_table(write(tmp_path / "f.csv", [row])).rows[0]
    assert (read.id, read.prompt, read.label, read.category, read.pair) == ("3", "x", "harmful", "Privacy", "p1")
    assert read.source is None
    assert read.extra == {"Target": "Sure"}


def test_what_is_told_goes_before_what_is_usual(tmp_path):
    rows = [
        {"prompt": "not this", "ask": text, "label": "0", "grade": g} for (text, _), g in zip(TWO, "AC", strict=True)
    ]
    path = write(tmp_path / "f.jsonl", rows)
    assert pairs(load_table(path, parse_columns("prompt=ask,label=grade,harmful=A"))) == TWO
    assert [r.label for r in load_table(path, parse_columns("label=harmful")).rows] == ["harmful", "harmful"]
    assert [r.label for r in load_table(path, parse_columns("label=benign")).rows] == ["benign", "benign"]


def test_several_values_may_mean_harmful_and_a_column_may_be_called_harmful(tmp_path):
    rows = [{"prompt": str(i), "harmful": v} for i, v in enumerate(["yes", "maybe", "no"])]
    path = write(tmp_path / "f.csv", rows)
    read = load_table(path, {"harmful": "yes|maybe"})
    assert [r.label for r in read.rows] == ["harmful", "harmful", "benign"]


def test_conversations_stay_and_of_a_users_turns_the_first_is_asked(tmp_path):
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "So?"},
    ]
    for suffix in ("jsonl", "parquet"):
        read = load_table(write(tmp_path / f"m.{suffix}", [{"messages": talk, "label": "benign"}])).rows[0]
        assert [m.content for m in read.conversation] == ["Hi", "Hi.", "So?"]
        read = load_table(write(tmp_path / f"t.{suffix}", [{"turns": ["One", "Two"], "label": 0}])).rows[0]
        assert read.prompt == "One"


def test_an_id_that_is_not_unique_is_no_id(tmp_path):
    rows = [{"id": 1, "prompt": text, "label": label} for text, label in TWO]
    assert [r.id for r in load_table(write(tmp_path / "f.csv", rows)).rows] == ["f-1", "f-2"]


def test_csv_with_a_byte_order_mark_quotes_and_lines_in_cells(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes('\ufeffprompt,label\r\n"Say ""hi"",\nthen go",safe\r\n'.encode())
    assert pairs(load_table(path)) == [('Say "hi",\nthen go', "benign")]


def test_csv_is_read_as_the_csv_module_reads_it(tmp_path):
    path = write(tmp_path / "f.csv", [{"prompt": f'{i},"{i}"\n{i}', "label": str(i % 2)} for i in range(50)])
    with path.open(newline="") as file:
        naive = [(r["prompt"], "harmful" if r["label"] == "1" else "benign") for r in csv.DictReader(file)]
    assert pairs(load_table(path)) == naive


def test_our_own_format_reads_as_before(tmp_path):
    for split in ("train", "validation", "test"):
        shipped_prompts(split).save(tmp_path / f"demur-{split}.jsonl")
        assert load_table(tmp_path / f"demur-{split}.jsonl").rows == shipped_prompts(split).rows
        assert load_prompts([tmp_path / f"demur-{split}.jsonl"], "test").rows == shipped_prompts(split).rows


@pytest.mark.shared
@pytest.mark.parametrize("name", ["prompts/test.jsonl", "prompts/dev.jsonl", "attacks/jailbreakbench.jsonl"])
def test_files_of_the_data_folder_read_as_before(name):
    assert load_table(data_folder() / name) == PromptSet.load(data_folder() / name)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_ten_thousand_rows_load_in_a_few_times_what_their_records_take(tmp_path, suffix):
    """A quarter of a second, but how long that is depends on the machine and on what else it does."""
    rows = [{"goal": f"Request {i} " + "word " * 40, "is_bad": i % 2, "why": "x" * 50} for i in range(10_000)]
    path = write(tmp_path / f"f.{suffix}", rows)

    def load() -> None:
        assert len(load_table(path, {"label": "is_bad"}).rows) == 10_000

    def records() -> None:
        for i, row in enumerate(rows):
            label = ("benign", "harmful")[row["is_bad"]]
            Prompt(id=str(i), prompt=row["goal"], label=label, source="f", extra={"why": row["why"]})

    def seconds(work) -> float:
        start = time.process_time()  # not the wall clock
        work()
        return time.process_time() - start

    load()  # imports are paid once
    assert min(seconds(load) for _ in range(3)) < 10 * min(seconds(records) for _ in range(3))


NO_PROMPT = [{"words": "Hi", "label": "benign"}]
NO_LABEL = [{"prompt": "Hi", "score": 3}]
ODD = [{"prompt": "Hi", "label": "good"}, {"prompt": "Ho", "label": "evil"}]
BAD: dict[str, tuple[list[dict[str, object]], str, str]] = {
    "no prompt": (NO_PROMPT, "", r"columns words, label.*--columns prompt=NAME"),
    "no label": (NO_LABEL, "", r"columns prompt, score.*--columns label=NAME, or label=harmful"),
    "labels not understood": (ODD, "", r"`label` holds 'good', 'evil', expected harmful or benign.*harmful=VALUE"),
    "no such column": (NO_LABEL, "label=scor", r"no column `scor`.*did you mean score"),
    "no such value": (ODD, "harmful=bad", r"never holds bad; it holds 'good', 'evil'"),
    "empty label": ([{"prompt": "Hi", "label": ""}, *ODD], "harmful=evil", r"row 1: .*`label`"),
    "empty prompt": ([{"prompt": "Hi", "label": 0}, {"prompt": " ", "label": 0}], "", r"row 2: .*`prompt`"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_what_is_not_understood_is_one_clear_error(tmp_path, case, suffix):
    rows, columns, wanted = BAD[case]
    with pytest.raises(PromptError, match=wanted):
        load_table(write(tmp_path / f"f.{suffix}", rows), parse_columns(columns))


@pytest.mark.parametrize(
    ("text", "wanted"), [("prompt", "FIELD=COLUMN"), ("promt=x", "did you mean prompt"), ("a=b", "fields are")]
)
def test_a_mapping_that_is_none_is_an_error(text, wanted):
    with pytest.raises(SettingsError, match=wanted):
        parse_columns(text)


def test_broken_files_are_clear_errors(tmp_path):
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "f.csv").write_bytes(b"prompt,label\n\xff\xfe,1\n")
    (tmp_path / "g.csv").write_text('prompt,label\n"never closed,1\n')
    (tmp_path / "empty.csv").write_text("prompt,label\n")
    (tmp_path / "f.xlsx").write_text("x")
    parquet.write_table(pa.table({"prompt": ["x"] * 999, "label": [0] * 999}), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-40])
    for name, wanted in {
        "f.parquet": "cannot be read as Parquet",
        "cut.parquet": "cannot be read as Parquet",
        "f.csv": "cannot be read as CSV",
        "g.csv": "cannot be read as CSV",
        "empty.csv": "holds no prompts",
        "f.xlsx": "ends in .jsonl, .csv, .parquet",
        "no.csv": "does not exist",
        "no.parquet": "does not exist",
        "no.jsonl": "does not exist",
    }.items():
        with pytest.raises(DemurError, match=wanted):
            load_table(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_type(tmp_path, monkeypatch):
    path = write(tmp_path / "f.parquet", [{"prompt": "x", "label": 0}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FileError, match="pip install pyarrow"):
        read_rows(path)


def test_every_word_for_a_label_means_one_thing():
    assert to_label("Unsafe") == "harmful"
    assert to_label(" TRUE ") == "harmful"
    assert to_label(0) == to_label(0.0) == to_label(False) == "benign"
    assert to_label("1", "is_safe") == "benign"
    assert to_label("unsafe", "is_safe") == "harmful"
    assert to_label("0.3", "toxicity") is None
    assert to_label(None) is None
    assert not any(name.startswith("response") for name in LABELLED)


def test_a_column_of_scores_is_not_taken_for_labels(tmp_path):
    rows = [{"prompt": text, "toxicity": 0.3, "unsafe": label == "harmful"} for text, label in TWO]
    assert pairs(load_table(write(tmp_path / "f.parquet", rows))) == TWO


def test_the_hash_is_of_prompts_and_labels_whatever_their_order(tmp_path):
    one = load_table(write(tmp_path / "a.csv", [{"prompt": t, "label": x, "n": 1} for t, x in TWO]))
    two = load_table(write(tmp_path / "b.jsonl", [{"goal": t, "is_harmful": x == "harmful"} for t, x in reversed(TWO)]))
    other = load_table(write(tmp_path / "c.csv", [{"prompt": t, "label": "benign"} for t, _ in TWO]))
    assert one.hash == two.hash != other.hash
