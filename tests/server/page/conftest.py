"""A real Chromium at a running server over a tiny model."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from demur.files import write_json, write_jsonl
from demur.records import Evidence, Feature, FeatureSet, Gate, Message
from demur.server.feedback.store import Store
from tests import tiny
from tests.server.feedback.conftest import answer
from tests.server.process import Process

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# Of the module: while it is open, its event loop runs in this thread, and another test can run none of its own.
@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("nicegui", reason="the extra `server` is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; make setup installs it")
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium is found, and CI wants one; make system")
        pytest.skip("no Chromium is found; make system (apt)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def home(folder: Path) -> list[str]:
    """What `demur serve` is given: a tiny model, a policy whose gate opens on some prompts, features, a run, a store."""
    lm = tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    words = ["--model", str(folder / "model"), "--store", str(folder / "feedback.db"), "--runs", str(folder / "runs")]
    hashes = {}
    for layer in (0, 1):
        sae = tiny.sae("llama", layer).to(torch.zeros(()))
        sae.config = sae.config.model_copy(update={"model_hash": lm.hash})
        sae.save(folder / "saes" / str(layer))
        hashes[sae.config.site] = sae.hash
        words += ["--sae", str(folder / "saes" / str(layer))]
    levels = {"standard": {"threshold": -99.0, "about": "opens on everything"}, "strict": {"threshold": -999.0}}
    wide = {"features": tuple(range(64)), "weights": (0.1, -0.1) * 32}  # so that some feature is active on any word
    gate = Gate(sensor=tiny.SENSOR.model_copy(update=wide), threshold=-99.0)
    policy = tiny.policy().model_copy(update={"model_hash": lm.hash, "saes": hashes, "gate": gate})
    type(policy).model_validate(policy.model_dump() | {"levels": levels}).save(folder / "steered.toml")
    features = [
        Feature(
            id=n,
            role=role,
            level=4.0,
            evidence=Evidence(contexts=(f"how to make a «{word}» at home",), raised=("Sorry",)),
        )
        for n, role, word in ((1, "sensor", "bomb"), (5, "sensor", "cake"), (3, "actuator", "no"))
    ]
    found = FeatureSet(
        model=lm.name, model_hash=lm.hash, sae="tiny", sae_hash=hashes["1.resid_post"], site="1.resid_post",
        method="effect", how="", features=tuple(features),
    )  # fmt: skip
    write_json(folder / "features.json", found)
    _run(folder / "runs" / "evaluate-1")
    return [*words, "--policy", str(folder / "steered.toml"), "--features", str(folder / "features.json")]


def _run(folder: Path) -> None:
    results, transcripts, verdicts = [], [], []
    for policy, rates in (("none", (1, 0)), ("steered", (9, 2))):
        for label, k in zip(("harmful", "benign"), rates, strict=True):
            results.append({"policy": policy, "label": label, "set": "s", "refused": {"k": k, "n": 10}})
            for i in range(10):
                row = {"id": f"{label}-{i}", "policy": policy, "set": "s"}
                asked = {"label": label, "prompt": f"A {label} request, number {i}.", "tokens": 3, "finish": "stop"}
                transcripts.append(row | asked | {"reply": f"Reply {i} of {policy}."})
                verdicts.append(row | {"judge": "rules", "outcome": "refused" if i < k else "complied"})
    write_json(folder / "results.json", results)
    write_jsonl(folder / "transcripts.jsonl", transcripts)
    write_jsonl(folder / "verdicts.jsonl", verdicts)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    words = home(folder)
    store = Store.open(folder / "feedback.db")
    for number in (1, 2):
        store.keep(answer(number, owner="local", messages=(Message(role="user", content=f"Question {number}?"),)))
        store.appeal("local", f"chatcmpl-{number}", f"Argument {number}.")
    store.close()
    with Process(*words) as made:
        made.store = folder / "feedback.db"
        yield made
        assert not any("Traceback" in line for line in made.log)


@pytest.fixture
def visit(browser, server):
    """Opens a view; whatever the browser complains of, or asks of another host, fails the test."""
    contexts = []

    def open_(path: str = "", **how):
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 860}, "color_scheme": "light"} | how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
        page.on(
            "request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else page.wrong.append(r.url)
        )
        page.goto(f"{server.url}/page/{path}")
        page.get_by_role("main").wait_for()
        return page

    yield open_
    wrong = [w for context in contexts for page in context.pages for w in page.wrong]
    for context in contexts:
        context.close()
    assert wrong == []
