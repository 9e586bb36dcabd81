"""Sets by name: from a data folder in each of its forms, from a stand-in for the hub by the hub's own client, or one
sentence on how to get them."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from demur.config import data_folder
from demur.data.prompts import shipped_prompts
from demur.data.registry import NAMES, SETS, NamedSet
from demur.data.sets import named_set, survey
from demur.data.taxonomy import KINDS
from demur.data.wrappers import PER_FAMILY, shipped_wrappers
from demur.errors import FileError, PromptError
from demur.files import read_jsonl
from demur.records import PromptSet
from tests.data.standin import REPOS, TOKEN, build, jailbreakbench, serve, sorry_bench, wildguard, write, xstest

HUB = [spec for spec in SETS if spec.repo]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A data folder that holds every set as a copy of its repository."""
    for spec in HUB:
        build(tmp_path / spec.name, spec.repo)
    return tmp_path


def test_every_set_reads_from_a_copy_of_its_repository(copy):
    for spec in HUB:
        for split in spec.splits:
            read = named_set(spec.name, copy, split)
            assert read.origin
            assert read.name == read.origin.name == spec.name
            assert read.origin.where == str(copy / spec.name)
            assert (read.origin.n, read.origin.hash, read.origin.split) == (len(read.rows), read.hash, split)
            assert read.origin.unknown == ()
            assert len({row.id for row in read.rows}) == len(read.rows)
            assert all(row.category in KINDS and row.licence == spec.licence for row in read.rows)
            assert {row.source for row in read.rows} == set(read.origin.columns)


def test_xstest_is_read_as_a_naive_loop_reads_it(copy):
    naive = {
        (r["prompt"], "benign" if r["label"] == "safe" else "harmful", r["type"], f"xstest_{r['label']}")
        for r in xstest()
    }
    rows = named_set("xstest", copy).rows
    assert {(r.prompt, r.label, r.extra["category"], r.source) for r in rows} == naive
    assert [r.category for r in rows] == ["homonym", "public_figure", "unspecified", "hate"]
    assert [r.kind for r in rows] == ["lookalike", "lookalike", "harmful", "harmful"]


def test_wildguard_leaves_out_what_people_did_not_agree_on_and_says_so(copy):
    read = named_set("wildguard", copy)
    agreed = [r for r in wildguard(24) if r["prompt_harm_label"]]
    assert Counter(r.prompt for r in read.rows) == Counter(r["prompt"] for r in agreed)
    assert read.origin and read.origin.left_out == 24 - len(agreed) == 6
    for row in read.rows:
        raw = next(r for r in agreed if r["prompt"] == row.prompt)
        assert (row.label == "harmful") == (raw["prompt_harm_label"] == "harmful")
        assert row.source == ("wildguard_adversarial" if raw["adversarial"] else "wildguard_vanilla")
        if row.label == "benign":
            assert row.category == ("disguised" if raw["adversarial"] else "contrast")
    assert len(named_set("wildguard", copy, "train").rows) == 6


def test_the_halves_of_jailbreakbench_are_joined_by_pair(copy):
    read = named_set("jailbreakbench", copy)
    halves: dict[str | None, list[str]] = {}
    for row in read.rows:
        halves.setdefault(row.pair, []).append(f"{row.label} {row.prompt}")
    assert halves == {f"jbb{i}": [f"harmful harmful goal {i}", f"benign benign goal {i}"] for i in range(3)}
    assert read.origin and read.origin.columns["jbb_benign"]["prompt"] == "Goal"


def test_sorry_bench_is_its_plain_prompts_and_seven_kinds_are_merely_offensive(copy):
    read = named_set("sorry-bench", copy)
    assert [r.prompt for r in read.rows] == [r["turns"][0] for r in sorry_bench() if r["prompt_style"] == "base"]
    assert Counter(r.label for r in read.rows) == {"harmful": 37, "benign": 7}
    assert read.origin and read.origin.moved == 7
    assert {r.extra["category"] for r in read.rows if r.label == "benign"} == {"1", "4", "25", "27", "32", "33", "34"}


def test_coconot_is_its_requests_with_safety_concerns_and_their_contrast(copy):
    rows = named_set("coconot", copy).rows
    assert Counter((r.source, r.label) for r in rows) == {
        ("coconot_safety", "harmful"): 2,
        ("coconot_contrast", "benign"): 2,
    }
    assert {r.category for r in rows if r.label == "benign"} == {"contrast"}


def test_of_mt_bench_the_first_turn_is_asked_and_gsm8k_is_mathematics(copy):
    assert [(r.prompt, r.kind, r.category) for r in named_set("mt-bench", copy).rows] == [
        ("Write a sort.", "plain", "code")
    ]
    assert [(r.prompt, r.kind) for r in named_set("gsm8k", copy).rows] == [("What is 2 + 2?", "mathematics")]
    assert [r.prompt for r in named_set("gsm8k", copy, "validation").rows] == ["What is 2 + 3?"]


def files(spec: NamedSet) -> set[str]:
    return {part.files for part in spec.parts if part.split == spec.splits[0]}


@pytest.mark.parametrize("spec", [spec for spec in HUB if len(files(spec)) == 1], ids=lambda spec: spec.name)
def test_the_hubs_file_alone_in_the_data_folder_reads_the_same(copy, tmp_path, spec):
    (path,) = [next((copy / spec.name).glob(pattern)) for pattern in files(spec)]
    (tmp_path / "one").mkdir()
    shutil.copy(path, tmp_path / "one" / f"{spec.name}{path.suffix}")
    alone = named_set(spec.name, tmp_path / "one")
    assert alone.rows == named_set(spec.name, copy).rows
    assert alone.origin and alone.origin.where.endswith(f"{spec.name}{path.suffix}")


def test_a_file_with_other_columns_is_read_by_its_usual_names(tmp_path):
    write(tmp_path / "advbench.csv", [{"goal": "Do harm", "target": "Sure"}])
    (row,) = named_set("advbench", tmp_path).rows
    assert (row.prompt, row.label, row.source, row.kind, row.category) == (
        "Do harm",
        "harmful",
        "advbench",
        "harmful",
        "unspecified",
    )
    halves = [
        {"goal": r["Goal"], "is_harmful": h == "harmful"} for h in ("harmful", "benign") for r in jailbreakbench(h)
    ]
    write(tmp_path / "jailbreakbench.jsonl", halves)
    rows = named_set("jailbreakbench", tmp_path).rows
    assert Counter((r.label, r.source, r.kind) for r in rows) == {
        ("harmful", "jbb_harmful", "harmful"): 3,
        ("benign", "jbb_benign", "lookalike"): 3,
    }


def test_a_set_whose_columns_changed_is_an_error_that_names_them(copy):
    path = next((copy / "strongreject").rglob("*.parquet"))
    write(path, [{"forbidden": "Do harm", "category": "Violence"}])
    with pytest.raises(
        PromptError, match=r"columns forbidden, category, and 'strongreject' should have prompt; it has ch"
    ):
        named_set("strongreject", copy)


def test_a_category_that_the_taxonomy_does_not_know_is_reported(copy):
    path = next((copy / "strongreject").rglob("*.parquet"))
    write(path, [{"prompt": "Do harm", "category": "Space law"}])
    read = named_set("strongreject", copy)
    assert read.origin and read.origin.unknown == ("Space law",)
    assert read.rows[0].category == "unspecified"


def test_our_own_set_needs_no_folder(tmp_path):
    for split in ("train", "validation", "test"):
        read = named_set("demur", tmp_path, split)
        assert [(r.id, r.prompt, r.label) for r in read.rows] == [
            (r.id, r.prompt, r.label) for r in shipped_prompts(split).rows
        ]
        assert {r.category for r in read.rows if r.kind == "lookalike"} == {"twin"}
        assert all("hazard" in r.extra for r in read.rows if r.kind == "lookalike")


def test_our_own_attacks_need_no_folder(tmp_path):
    read = named_set("wrappers", tmp_path)
    counts = Counter((r.family, r.label) for r in read.rows)
    assert set(counts.values()) == {PER_FAMILY}
    assert {family for family, _ in counts} == {w.family for w in shipped_wrappers("test")}
    asked = {r.prompt for r in shipped_prompts("test").rows}
    assert {r.goal for r in read.rows} <= asked
    assert not asked & {r.prompt for r in read.rows}
    assert {r.category for r in read.rows if r.kind == "lookalike"} == {"disguised"}
    assert "unspecified" not in {r.category for r in read.rows}


def test_where_a_set_came_from_stays_with_its_samples(copy):
    read = named_set("sorry-bench", copy)
    assert read.sample(5).origin == read.where(label="harmful").origin == read.origin


@pytest.mark.shared
def test_the_data_folder_gives_what_its_readme_states():
    counts = {
        "xstest": {"benign": 250, "harmful": 200},
        "harmbench": {"harmful": 159},
        "jailbreakbench": {"benign": 100, "harmful": 100},
        "advbench": {"harmful": 406},
        "or-bench": {"benign": 648},
        "mt-bench": {"benign": 80},
        "gsm8k": {"benign": 300},
    }
    start = time.process_time()
    for name, wanted in counts.items():
        read = named_set(name)
        assert Counter(r.label for r in read.rows) == wanted
        assert read.origin and read.origin.unknown == () and read.origin.left_out == 0
    assert time.process_time() - start < 3
    rows = [r for r in read_jsonl(data_folder() / "prompts" / "test.jsonl") if r["source"].startswith("xstest")]
    assert [(r.id, r.prompt, r.label) for r in named_set("xstest").rows] == [
        (r["id"], r["prompt"], r["label"]) for r in rows
    ]
    pairs = Counter(r.pair for r in named_set("jailbreakbench").rows)
    assert set(pairs.values()) == {2}
    assert len(named_set("harmbench", split="validation").rows) == 35
    assert len(named_set("or-bench", split="train").rows) == 8827


def test_unknown_names_splits_and_folders_are_clear_errors(copy):
    with pytest.raises(PromptError, match="did you mean xstest"):
        named_set("xtest", copy)
    with pytest.raises(PromptError, match="known are demur, chats, wrappers, wildguard"):
        named_set("qqq", copy)
    with pytest.raises(PromptError, match=r"has no split train, neither in .* nor on the hub; it has test"):
        named_set("xstest", copy, "train")
    with pytest.raises(FileError, match=r"data folder .* does not exist"):
        named_set("xstest", copy / "nowhere")


def test_without_a_network_the_error_says_how_to_bring_the_set_here(tmp_path):
    # conftest.py sets HF_HUB_OFFLINE: the client refuses to ask.
    with pytest.raises(FileError) as caught:
        named_set("wildguard", tmp_path)
    message = str(caught.value)
    assert "the hub cannot be reached" in message
    assert "hf download allenai/wildguardmix --repo-type dataset --include 'test/wildguard_test.parquet'" in message
    assert "--local-dir DIR/wildguard`, then give --data-dir DIR" in message
    assert "https://huggingface.co/datasets/allenai/wildguardmix" in message


def test_what_the_error_says_to_do_helps(copy):
    with pytest.raises(FileError, match="--local-dir DIR/coconot"):
        named_set("coconot", copy / "coconot")
    assert len(named_set("coconot", copy).rows) == 4


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(FileError, match=r"pip install 'demur\[hub\]', or put it into the data folder as xstest.jsonl"):
        named_set("xstest", tmp_path)


def test_the_survey_says_of_every_set_where_it_is_or_how_to_get_it(copy):
    shutil.rmtree(copy / "wildguard")
    (copy / "coconot" / "contrast" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    found = {reach.name: reach for reach in survey(copy)}
    assert list(found) == list(NAMES)
    assert found["wildguard"].where is None
    assert "hf download" in (found["wildguard"].how or "")
    assert "cannot be read as Parquet" in (found["coconot"].how or "")
    for name in set(NAMES) - {"wildguard", "coconot"}:
        read = named_set(name, copy)
        assert (found[name].n, found[name].hash) == (len(read.rows), read.hash)


LOAD = """
import json, sys
from demur.data.sets import named_set, survey
from demur.errors import DemurError
folder, names = sys.argv[1], sys.argv[2:]
out = {}
for name in names:
    try:
        read = named_set(name, folder)
        out[name] = {"hash": read.hash, "where": read.origin.where, "n": read.origin.n}
    except DemurError as error:
        out[name] = {"error": str(error)}
out["survey"] = {r.name: r.where or r.how for r in survey(folder)}
print(json.dumps(out))
"""


def ask(url: str, home: Path, names: list[str], **env: str) -> dict[str, Any]:
    """What a process that asks the hub at `url` gets; its own environment, for the client reads it on import."""
    (home / "empty").mkdir(exist_ok=True)
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    ours |= {"HF_ENDPOINT": url, "HF_HOME": str(home / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | env
    words = [sys.executable, "-c", LOAD, str(home / "empty"), *names]
    return json.loads(subprocess.run(words, env=ours, capture_output=True, text=True, check=True).stdout)


def test_the_hubs_own_client_gives_the_same_sets_and_only_the_files_needed(copy, tmp_path):
    names = [spec.name for spec in HUB]
    with serve(tmp_path / "hub") as (url, downloaded):
        got = ask(url, tmp_path, names, HF_TOKEN=TOKEN)
        assert len(downloaded) == len(set(downloaded)) == 14
    for spec in HUB:
        want = named_set(spec.name, copy)
        assert (got[spec.name]["hash"], got[spec.name]["n"]) == (want.hash, len(want.rows))
        assert got[spec.name]["where"] == f"hub:{spec.repo}@0123456789ab"
    assert not {"or-bench-80k.csv", "question_slang.jsonl"} & {Path(path).name for path in downloaded}
    # The network is gone, the hub's cache is not.
    assert ask("http://127.0.0.1:9", tmp_path, names) == got


def test_gated_sets_without_access_say_where_to_ask(tmp_path):
    with serve(tmp_path / "hub") as (url, _):
        for token in ({}, {"HF_TOKEN": "hf_somebodyelse"}):
            got = ask(url, tmp_path, ["wildguard", "sorry-bench"], **token)
            for name in ("wildguard", "sorry-bench"):
                repo = NAMES[name].repo
                assert (
                    f"{repo} is gated: ask for access at https://huggingface.co/datasets/{repo}" in got[name]["error"]
                )
                assert "HF_TOKEN" in got[name]["error"]
            assert "is gated" in got["survey"]["harmbench"]
            assert got["survey"]["xstest"] == "hub:Paul/XSTest"


def test_the_standin_is_laid_out_as_the_registry_expects():
    assert {spec.repo for spec in HUB} == set(REPOS)
    assert isinstance(named_set("demur"), PromptSet)
