"""`demur sae-report` on a tiny model, from the command line: its figures are the measures', the page runs nothing."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from demur.data.corpus import Sequences, Source
from demur.features.effect import Bench
from demur.features.examine import ExamineSettings, Findings, harm_prompts, held_out_texts
from demur.features.held_out import held_out, pairs
from demur.features.purpose import apart, direction
from demur.features.reading import read_said
from demur.features.sensors import fit
from demur.files import read_json, write_json
from demur.models.chat import tokens_and_roles
from demur.records import Prompt
from demur.reports.sae import report
from demur.sae.exchange.formats import write
from demur.sae.quality import measure, nearest
from demur.sae.settings import SAESettings
from demur.sae.train import gather_text
from tests import tiny
from tests.reports.reading import Page
from tests.verbs.test_bad_input import run

SMALL = (
    "--tokens",
    "400",
    "--per-source",
    "12",
    "--sensors",
    "6",
    "--replies",
    "4",
    "--length",
    "64",
    "--spliced",
    "1",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model, one SAE of it in SAELens's format, prompts of two sources for each label, and a text."""
    made = tmp_path_factory.mktemp("sae-report")
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(made / "model")
    lm.tokenizer.save_pretrained(made / "model")
    write(tiny.sae().to(torch.zeros(())), "saelens", made / "lens")
    rows = [
        {"prompt": f"{'How to harm' if bad else 'Tell me of'} {i} <b>", "label": label, "source": f"{s}-{label}"}
        for bad, label in ((True, "harmful"), (False, "benign"))
        for s in ("one", "two")
        for i in range(6)
    ]
    (made / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    texts = [{"text": f"Once upon a time there were {i} boats, and a sea."} for i in range(20)]
    (made / "text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return made


@pytest.fixture(scope="module")
def made(home) -> tuple[Path, dict]:
    """A run without the data folder, by the command line."""
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as quiet:
        patch.chdir(home)
        quiet.setenv("DEMUR_DATA", str(home / "nowhere"))
        written: list[str] = []
        quiet.setattr("sys.stdout.write", written.append)
        words = ["sae-report", home / "lens", "--model", home / "model", "--prompts", home / "prompts.jsonl"]
        words += ["--text", home / "text.jsonl", "--run", home / "run", "--json", *SMALL]
        code = run(patch, _Nothing(), *map(str, words))[0]
    assert code == 0
    return home / "run", json.loads("".join(written))


class _Nothing:
    def readouterr(self) -> tuple[str, str]:
        return "", ""


def test_the_figures_of_the_run_are_those_of_the_measures(made, home):
    folder, body = made
    found = Findings.model_validate(read_json(folder / "findings.json"))
    lm, sae = tiny.lm("llama", torch.float32), tiny.sae().to(torch.zeros(()))
    _, text = held_out_texts(
        Bench(lm, sae), home / "lens", [home / "text.jsonl"], ExamineSettings(tokens=400, length=64)
    )
    plain = measure(lm, sae, text["text"])
    for name, value in plain.model_dump().items():
        assert getattr(found.text.whole, name) == pytest.approx(value, abs=1e-4), name
    assert found.text.nearest == pytest.approx(nearest(sae).tolist(), abs=1e-5)
    assert sum(d == 0 for d in found.text.density) / len(found.text.density) == pytest.approx(plain.dead)
    assert (found.format, found.config.site, body["hash"]) == ("SAELens", "1.resid_post", found.hash)
    assert [len(g) for g in found.gates.values()] == [2, 2]
    assert {p.harmful for p in found.harm.held_out[0].pairs} == {"one-harmful", "two-harmful"}


def test_every_figure_of_the_tables_stands_in_the_page_and_in_csv(made):
    folder, _ = made
    found = Findings.model_validate(read_json(folder / "findings.json"))
    page = Page((folder / "report.html").read_text())
    cells = [" ".join(cell.split()) for row in page.rows for cell in row]
    for gates in found.gates.values():
        for h in gates:
            assert any(c.startswith(f"{h.unseen.area:.3f} [{h.unseen.low:.3f}, ") for c in cells)
    q = found.text.whole
    for value in (f"{q.fvu:.4f}", f"{q.kl_spliced:.3f}", f"{q.loss_plain:.3f}"):
        assert value in cells
    rows = list(csv.DictReader((folder / "figures.csv").open()))
    assert {r["table"] for r in rows} >= {"text", "features", "gates", "harm-gate", "refusal-probe", "directions"}
    areas = [float(r["value"]) for r in rows if r["table"] == "gates" and "sources left out" in r["of"]]
    assert areas == [h.unseen.area for gates in found.gates.values() for h in gates]
    assert all(math.isfinite(float(r["value"])) for r in rows)
    assert f"{q.fvu:.4f}" in (folder / "report.md").read_text()


def test_the_page_runs_nothing_and_fetches_nothing(made):
    text = (made[0] / "report.html").read_text()
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert text.count('<svg class="chart"') == 4 or text.count('class="chart"') == 4


def test_a_run_that_was_stopped_goes_on(made, home, monkeypatch, capsys):
    folder, _ = made
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "findings.json").unlink()
    (folder / "text.json").unlink()
    untouched = (folder / "harm.json").stat().st_mtime_ns
    monkeypatch.chdir(home)
    monkeypatch.setenv("DEMUR_DATA", str(home / "nowhere"))
    words = [
        "sae-report",
        "lens",
        "--model",
        "model",
        "--prompts",
        home / "prompts.jsonl",
        "--text",
        home / "text.jsonl",
    ]
    code, out, _ = run(monkeypatch, capsys, *map(str, words), "--run", str(folder), *SMALL)
    assert code == 0
    assert "wrote" in out
    assert (folder / "harm.json").stat().st_mtime_ns == untouched
    assert (folder / "text.json").read_bytes() == before["text.json"]


def test_with_nothing_given_and_no_data_folder_our_own_text_is_read(home, monkeypatch, tmp_path):
    monkeypatch.setenv("DEMUR_DATA", str(tmp_path))
    bench = Bench(tiny.lm("llama", torch.float32), tiny.sae().to(torch.zeros(())))
    about, text = held_out_texts(bench, home / "lens", [], ExamineSettings(tokens=400, length=64))
    assert "our own" in about
    assert all(isinstance(t, Sequences) and len(t) >= 8 for t in text.values())
    prompts = harm_prompts([])
    sources, how = apart(prompts.rows)
    assert "one source" in how
    twins = {}
    for row, source in zip(prompts.rows, sources, strict=True):
        if row.pair:
            twins.setdefault(row.pair, set()).add(source)
    assert twins and all(len(s) == 1 for s in twins.values())
    possible, missing = pairs([(row.label == "harmful", s) for row, s in zip(prompts.rows, sources, strict=True)])
    assert (len(possible), missing) == (16, [])


def test_an_sae_in_its_training_run_is_measured_on_what_that_run_held_out(home, tmp_path):
    lm = tiny.lm("llama", torch.float32)
    trained = SAESettings(
        site=("1.resid_post",), text=(Source(path=str(home / "text.jsonl"), tokens=900),), length=32, held_out=0.3
    )
    held = gather_text(lm, trained, tmp_path)[1]
    write_json(tmp_path / "manifest.json", {"settings": trained.model_dump(mode="json")})
    bench = Bench(lm, tiny.sae().to(torch.zeros(())))
    about, text = held_out_texts(bench, tmp_path / "sae", [], ExamineSettings())
    assert "held out of training" in about
    assert text["held out"].tokens.tolist() == held.tokens.tolist()
    assert len(held_out_texts(bench, tmp_path / "sae", [home / "text.jsonl"], ExamineSettings(tokens=200))[1]) == 1


def test_prompts_of_several_sources_are_left_out_by_source():
    rows = [Prompt(id=str(i), prompt="x", label="benign", source=s) for i, s in enumerate(("a", "b", "a"))]
    assert apart(rows) == (["a", "b", "a"], "2 sources")


def test_read_said_is_the_naive_loop():
    lm, sae = tiny.lm(), tiny.sae()
    talk, replies = tiny.said("Hi", "What is a boat?", "Longer than that"), [[40, 41, 42], [50], [60, 61]]
    found = read_said(lm, sae, talk, replies, ["max", "mean"], batch=2, residual=["mean"])
    for i, (conversation, reply) in enumerate(zip(talk, replies, strict=True)):
        ids = tokens_and_roles(lm, conversation)[0]
        from demur.activations.harvest import read

        x = read(lm, [sae.config.site], torch.tensor([ids + reply]))[sae.config.site][0, len(ids) - 1 : -1]
        assert len(x) == len(reply)
        assert torch.allclose(found["max"][i].double(), sae.encode(x).amax(0), atol=1e-5)
        assert torch.allclose(found["mean"][i].double(), sae.encode(x).mean(0), atol=1e-5)
        assert torch.allclose(found["residual mean"][i].double(), x.mean(0), atol=1e-5)


def test_a_direction_that_is_a_feature_is_found_and_kept_by_an_sae_that_reconstructs_all():
    sae = tiny.sae().to(torch.zeros(()))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, sae.config.d_model, generator=g)
    toward = [i % 2 == 0 for i in range(200)]
    v = sae.W_dec[5]
    x = x - (x @ v)[:, None] * v + torch.tensor(toward)[:, None] * 3.0 * v
    x[toward] -= x[toward].mean(0) - x[[not t for t in toward]].mean(0) - 3.0 * v
    # Codes that reconstruct exactly, whatever an encoder would say.
    f = torch.linalg.lstsq(sae.W_dec.T.double(), (x - sae.b_dec).T.double()).solution.T.float()
    found = direction("test", "", sae, x, f, toward)
    assert found.feature == 5
    assert found.nearest == pytest.approx(1, abs=1e-4)
    assert found.cosine == pytest.approx(1, abs=1e-4)
    assert (found.kept, found.explained) == (pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert found.spanned[1] == pytest.approx(1, abs=1e-4)
    assert found.spanned_random[1] < found.spanned_random[16] < 1
    assert found.spanned_random[1] < 0.6
    nothing = direction("test", "", sae, x, torch.zeros_like(f) + 1e-9 * f, toward)
    assert nothing.kept == pytest.approx(0, abs=1e-6)
    assert nothing.explained < 0.1


def test_the_gate_of_the_report_is_the_one_that_find_measures(made):
    found = Findings.model_validate(read_json(made[0] / "findings.json"))
    lm, sae = tiny.lm("llama", torch.float32), tiny.sae().to(torch.zeros(()))
    from demur.features.reading import read_prompts

    prompts = harm_prompts([made[0].parent / "prompts.jsonl"])
    rows = list(prompts.rows)
    order = sorted(range(len(rows)), key=lambda i: (rows[i].source is None, i))
    rows = [rows[i] for i in order]
    pooled = read_prompts(lm, sae, [r.conversation for r in rows], ["max"])["max"]
    sources = [r.source or "" for r in rows]
    again = held_out(
        "x",
        partial(fit, count=6),
        pooled,
        [r.label == "harmful" for r in rows],
        sources,
        [f"{s} None" for s in sources],
    )
    assert [p.unseen.area for p in again.pairs] == pytest.approx([p.unseen.area for p in found.harm.held_out[0].pairs])


def test_the_report_is_the_same_object_for_page_and_markdown(made):
    found = Findings.model_validate(read_json(made[0] / "findings.json"))
    assert [s.id for s in report(found, made[0]).sections] == ["text", "features", "gates", "directions"]
