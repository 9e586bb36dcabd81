"""The section on attacks: its figures are those of `attacks.json`, and it is there only where there were attacks."""

import csv
import io
import shutil
from pathlib import Path

import pytest

from demur.evaluation.attacks.run import write_attacks
from demur.evaluation.attacks.success import ALL, AttackResult, Cut
from demur.evaluation.statistics import Rate
from demur.files import read_json, write_json
from demur.reports import attacks, plain, summary
from demur.reports.page import write_report
from demur.reports.study import Study, read_study
from demur.reports.whole import report


def result(family: str, policy: str, won: int, cut: float | None = None, **more) -> AttackResult:
    about = {"attack": "jailbreaks", "label": "harmful", "policy": policy, "policy_hash": f"hash-{policy}"} | more
    found = Cut(n=20, share=cut, low=cut - 0.1, high=min(1.0, cut + 0.1)) if cut is not None else None
    success = Rate.of(won, 20)
    return AttackResult(**about, family=family, judge="rules", n=20, goals=10, success=success, opened=3, cut=found)


WON = [
    result("PAIR", "none", 20),
    result("PAIR", "gated", 4, 0.8),
    result(ALL, "none", 20),
    result(ALL, "gated", 5, 0.75),
    result("last turn alone", "none", 10, attack="crescendo", control=True),
    result("last turn alone", "gated", 5, 0.5, attack="crescendo", control=True),
    result("recovery", "gated", 15, 0.25, attack="recovery", figures={"norm": 0.098}),
]


@pytest.fixture
def attacked(run: Path, tmp_path: Path) -> Path:
    """A run with attacks, as `demur attack` leaves it."""
    folder = shutil.copytree(run, tmp_path / "runs" / "attacked")
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {"verb": "attack"})
    write_attacks(folder, WON)
    return folder


def test_every_figure_of_the_file_is_in_the_tables(attacked: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(plain.figures_csv(report(read_study(attacked))))))
    for r in WON:
        family = f"({r.family})" if r.control else r.family
        of = f"{r.attack} / {family} / {r.label}"
        (won,) = [x for x in rows if (x["table"], x["policy"], x["of"]) == ("attacks", r.policy, of)]
        assert r.success is not None
        assert (float(won["value"]), float(won["low"]), int(won["n"])) == (r.success.rate, r.success.low, 20)
        cut = [x for x in rows if (x["table"], x["policy"], x["of"]) == ("attacks-cut", r.policy, of)]
        assert [float(x["value"]) for x in cut] == ([r.cut.share] if r.cut else [])


def test_the_page_says_what_is_a_control_and_what_an_attack_says_of_itself(attacked: Path) -> None:
    page = write_report(attacked).read_text().replace("\N{NO-BREAK SPACE}", " ")
    for said in ("(last turn alone)", "norm 0.098", "n = 20, 10 goals", "takes back 75 % of what jailbreaks wins"):
        assert said in page


def test_of_an_attack_with_families_all_of_them_are_taken_home(attacked: Path) -> None:
    (point,) = [p for p in summary.take_home(read_study(attacked)) if p.section == "attacks"]
    assert "75 % of what jailbreaks" in point.text and "25 % of what recovery" in point.text
    assert "80 %" not in point.text and "50 %" not in point.text


def test_without_attacks_there_is_no_section(study: Study) -> None:
    assert attacks.attacks(study) is None
    assert not [p for p in summary.take_home(study) if p.section == "attacks"]


def test_attacks_made_later_go_before_those_that_a_run_has(attacked: Path) -> None:
    write_attacks(attacked, [result("gcg", "gated", 1, attack="gcg"), result("PAIR", "gated", 20, 0.0)])
    found = [r.attack for r in read_study(attacked).attacks]
    assert found == ["gcg", "jailbreaks", "crescendo", "crescendo", "recovery"]
