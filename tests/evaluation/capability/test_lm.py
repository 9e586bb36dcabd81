"""The steered model in lm-eval: under an empty policy it is lm-eval's own `hf`; under any other, a naive loop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import demur
from demur.errors import PolicyError
from demur.models.generation import GenerationSettings
from demur.records import Message
from demur.steering.generate import generate
from demur.steering.policies import NONE
from tests import tiny
from tests.evaluation.capability import asking

pytestmark = pytest.mark.lm_eval
CLOSE = {"abs": 1e-10, "rel": 0}
LONG = " ".join(asking.TEXTS) * 2


def steered(policy=NONE, architecture="llama", **more):
    from demur.evaluation.capability.lm import SteeredLM

    more = {"batch_size": 3, "saes": tiny.saes(architecture), "quiet": True} | more
    return SteeredLM(policy, tiny.lm(architecture), **more)


def hf(architecture="llama", **more):
    from lm_eval.models.huggingface import HFLM

    lm = tiny.lm(architecture)
    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, **{"batch_size": 3} | more)


LAYOUTS = [{"max_length": 24}, {"batch_size": 1}, {"batch_size": 64}]


@pytest.mark.parametrize(
    ("architecture", "more"), [*((a, {}) for a in tiny.ARCHITECTURES), *(("llama", m) for m in LAYOUTS)], ids=str
)
def test_an_empty_policy_is_hf_to_the_last_digit(architecture, more):
    ours, theirs = steered(architecture=architecture, **more), hf(architecture, **more)
    contexts = [*asking.TEXTS, "", "ends in space \n", *map(theirs.apply_chat_template, asking.talks())]
    assert contexts[6:] == [ours.apply_chat_template(t) for t in asking.talks()]
    for kind, requests in (
        ("loglikelihood", asking.scoring(contexts)),
        ("loglikelihood_rolling", asking.rolling([*asking.TEXTS, LONG])),
        ("generate_until", asking.replying([c for c in contexts if c])),
    ):
        assert getattr(ours, kind)(requests) == getattr(theirs, kind)(requests, disable_tqdm=True)
    assert not ours.decisions


@pytest.mark.parametrize("positions", ["reply", "user", "all"])
@pytest.mark.parametrize("gated", [False, True])
def test_scores_of_raw_contexts_are_those_of_each_row_alone(gated, positions):
    prompts = {text: asking.raw_prompt(text) for text in asking.TEXTS}
    policy = tiny.policy(threshold=asking.middle(prompts.values()) if gated else None, positions=positions)
    found = steered(policy).loglikelihood(asking.scoring(prompts))
    wanted = [asking.alone(policy, p, asking.code(text)) for p in prompts.values() for text in asking.CONTINUATIONS]
    assert [f[0] for f in found] == pytest.approx([value for value, _ in wanted], **CLOSE)
    assert {seen["open"] for _, seen in wanted} == ({True, False} if gated else {True})


@pytest.mark.parametrize("gated", [False, True])
def test_scores_of_templated_contexts_are_those_of_each_row_alone(gated):
    prompts = [asking.templated_prompt(talk) for talk in asking.talks()]
    policy = tiny.policy(threshold=asking.middle(prompts) if gated else None)
    model = steered(policy)
    found = model.loglikelihood(asking.scoring(map(model.apply_chat_template, asking.talks())))
    wanted = []
    for ids, roles in prompts:
        # lm-eval scores the template's last newline with the continuation; it is foretold before the first edit.
        newline = asking.alone(NONE, (ids[:-1], roles[:-1]), ids[-1:])[0]
        wanted += [newline + asking.alone(policy, (ids, roles), asking.code(t))[0] for t in asking.CONTINUATIONS]
    assert [f[0] for f in found] == pytest.approx(wanted, **CLOSE)


@pytest.mark.parametrize("gated", [False, True])
def test_replies_are_those_of_demurs_own_generate(gated):
    talks = asking.talks()
    policy = tiny.policy(threshold=asking.middle(map(asking.templated_prompt, talks)) if gated else None)
    model = steered(policy)
    found = model.generate_until(asking.replying([model.apply_chat_template(t) for t in talks]))
    messages = [[Message.model_validate(m) for m in t] for t in talks]
    how = GenerationSettings(max_new_tokens=6)
    own = dict(generate(tiny.lm(), tiny.saes(), messages, [policy] * len(talks), how))
    assert [f.strip() for f in found] == [own[i].text.split("zz")[0].strip() for i in range(len(talks))]
    assert [model.decisions["generate_until", model.apply_chat_template(t)].open for t in talks] == [
        own[i].steering["open"] for i in range(len(talks))
    ]


def test_of_a_rolled_text_the_gate_reads_nothing():
    texts, plain = [*asking.TEXTS, LONG], steered(max_length=24)
    unread = plain.loglikelihood_rolling(asking.rolling(texts))
    gate = tiny.policy(threshold=1.0).gate
    for threshold, same in ((gate.sensor.bias + 1e-6, True), (gate.sensor.bias, False)):
        model = steered(tiny.policy(threshold=threshold), max_length=24)
        found = model.loglikelihood_rolling(asking.rolling(texts))
        assert (found == unread) is same
        assert model.asked == model.decided == {"loglikelihood_rolling": len(texts)}
        assert model.decisions["loglikelihood_rolling", ""].gate == pytest.approx(gate.sensor.bias)


def test_two_contexts_that_end_at_different_places_in_one_text_do_not_share_a_row():
    policy = tiny.policy()
    found = steered(policy).loglikelihood(
        asking.instances("loglikelihood", [("Who was", " it, now"), ("Who", " was it, now")])
    )
    for (value, _), (context, rest) in zip(found, [("Who was", " it, now"), ("Who", " was it, now")], strict=True):
        assert value == pytest.approx(asking.alone(policy, asking.raw_prompt(context), asking.code(rest))[0], **CLOSE)


def test_what_a_shut_gate_leaves_alone_is_taken_from_the_plain_model(monkeypatch):
    plain: dict = {}
    none = steered(plain=plain)
    contexts = [*asking.TEXTS, *map(none.apply_chat_template, asking.talks())]
    calls = {
        "loglikelihood": asking.scoring(contexts),
        "generate_until": asking.replying(contexts),
        "loglikelihood_rolling": asking.rolling(asking.TEXTS),
    }
    wanted = {kind: getattr(none, kind)(requests) for kind, requests in calls.items()}
    policy = tiny.policy(threshold=asking.middle(map(asking.raw_prompt, asking.TEXTS)))
    full, short = steered(policy), steered(policy, plain=plain)
    for model in (full, short):
        for talk in asking.talks():
            model.apply_chat_template(talk)
    run, scored = [], type(short)._loglikelihood_tokens

    def counted(self, requests, *more, **others):
        run.append(len(requests))
        return scored(self, requests, *more, **others)

    monkeypatch.setattr(type(short), "_loglikelihood_tokens", counted)
    for kind, requests in calls.items():
        run.clear()
        found, steered_too = getattr(short, kind)(requests), getattr(full, kind)(requests)
        opened = [short.decisions[kind, "" if "rolling" in kind else r.args[0]].open for r in requests]
        for i, is_open in enumerate(opened):
            if not is_open:
                assert found[i] == wanted[kind][i]
            if kind == "loglikelihood":
                assert found[i][0] == pytest.approx(steered_too[i][0], **CLOSE)
                assert is_open == (abs(found[i][0] - wanted[kind][i][0]) > 1e-6)
            else:
                assert found[i] == steered_too[i]
        if kind == "loglikelihood":
            assert run == [sum(opened), len(requests)]
            assert 0 < sum(opened) < len(requests)
        assert short.decided[kind] == full.decided[kind] == len(requests)


def test_sampled_replies_are_not_remembered():
    plain: dict = {}
    steered(plain=plain).generate_until(asking.replying(["Hi"], do_sample=True, temperature=1.0))
    assert not plain


def test_beam_search_is_refused():
    with pytest.raises(PolicyError, match="beam"):
        steered(tiny.policy()).generate_until(asking.replying(["Hi"], num_beams=2))


def local_data(folder, rows=7):
    """A data folder with two tasks' worth of rows that we wrote."""
    where = folder / "capability"
    where.mkdir()
    quiz = [
        {"id": f"q{i}", "question": f"Question: What is {i} + 1?", "choices": [f"{i}", f"{i + 1}", "many"], "gold": 1}
        for i in range(rows)
    ]
    sums = [
        {"id": f"s{i}", "question": f"What is {i} + {i}?", "answer": f"It is <<{2 * i}>>{2 * i}.\n#### {2 * i}"}
        for i in range(3)
    ]
    for name, made in (("arc_easy", quiz), ("gsm8k", sums)):
        (where / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    return folder


def evaluated(model, folder, templated):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from demur.evaluation.capability.tasks import load_task

    parts = [load_task(name, folder).parts for name in ("arc_easy", "gsm8k")]
    for part in parts:
        for task in part.values():
            if task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"max_gen_toks": 12}, update=True)
    return simple_evaluate(
        model,
        tasks=[task for part in parts for task in part.values()],
        apply_chat_template=templated,
        bootstrap_iters=100,
        task_manager=TaskManager(include_defaults=False),
    )


def assert_same(ours, theirs):
    assert ours["results"] == theirs["results"]
    for name, samples in theirs["samples"].items():
        for a, b in zip(ours["samples"][name], samples, strict=True):
            assert a == b


@pytest.mark.parametrize("templated", [False, True])
def test_a_local_task_gives_hfs_results_and_samples(tmp_path, templated):
    folder = local_data(tmp_path)
    assert_same(evaluated(steered(), folder, templated), evaluated(hf(), folder, templated))


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("templated", [False, True])
def test_a_local_task_gives_hfs_results_on_the_embedded_model(tmp_path, templated):
    from lm_eval.models.huggingface import HFLM

    from demur.evaluation.capability.lm import SteeredLM
    from demur.models.load import load

    lm, folder = load("embedded"), local_data(tmp_path)
    theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=8)
    assert_same(evaluated(SteeredLM("none", lm, batch_size=8), folder, templated), evaluated(theirs, folder, templated))


@pytest.mark.parametrize(
    ("architecture", "gated"), [*((a, None) for a in tiny.ARCHITECTURES), ("llama", False), ("llama", True)]
)
def test_a_lean_model_gives_the_same_to_rounding(architecture, gated):
    threshold = asking.middle(map(asking.raw_prompt, asking.TEXTS)) if gated else None
    policy = NONE if gated is None else tiny.policy(architecture, threshold=threshold)
    exact, lean = steered(policy, architecture), steered(policy, architecture, lean=True)
    contexts = [*asking.TEXTS, "", "ends in space \n"]
    for talk in asking.talks():
        contexts.append(exact.apply_chat_template(talk))
        assert lean.apply_chat_template(talk) == contexts[-1]
    for found, wanted in zip(*(m.loglikelihood(asking.scoring(contexts)) for m in (lean, exact)), strict=True):
        assert found[0] == pytest.approx(wanted[0], **CLOSE)
        assert found[1] == wanted[1]
    assert lean.packs is True
    if architecture == "llama":
        replies = asking.replying([c for c in contexts if c], max_gen_toks=28, until=["e", "zz"])
        assert lean.generate_until(replies) == exact.generate_until(replies)
    texts = asking.rolling([*asking.TEXTS, LONG])
    assert lean.loglikelihood_rolling(texts) == pytest.approx(exact.loglikelihood_rolling(texts), **CLOSE)
    assert lean.decisions.keys() == exact.decisions.keys()
    assert lean.decided == exact.decided


def test_a_model_that_heeds_no_positions_is_not_packed(monkeypatch):
    wanted, lean = steered().loglikelihood(asking.scoring(asking.TEXTS)), steered(lean=True)
    real = type(lean.lm).logits
    monkeypatch.setattr(type(lean.lm), "logits", lambda self, ids, *layout, **more: real(self, ids, **more))
    assert lean.loglikelihood(asking.scoring(asking.TEXTS)) == wanted
    assert lean.packs is False


def test_rows_longer_than_the_window_or_the_context_are_not_packed():
    wanted, lean = (
        steered(max_length=24).loglikelihood(asking.scoring([*asking.TEXTS, LONG])),
        steered(max_length=24, lean=True),
    )
    found = lean.loglikelihood(asking.scoring([*asking.TEXTS, LONG]))
    assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], **CLOSE)


def commanded(folder, *words):
    """lm-eval's own command in a process of its own: what it wrote of results and of each sample."""
    out = folder / words[1]
    data = {"DEMUR_DATA": str(folder), "PYTHONPATH": str(Path(demur.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "lm_eval", *words, "--batch_size", "4", "--log_samples", "--output_path", str(out)]
    subprocess.run(line, check=True, capture_output=True, env=os.environ | data)
    samples = sorted(out.rglob("samples_*.jsonl"))
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    return results, [sorted(path.read_text().splitlines()) for path in samples]


@pytest.mark.slow
def test_lm_evals_own_command_finds_the_model_and_gives_hfs_figures(tmp_path):
    """With task files named by their paths; from the release after 0.4.13 on, with any task."""
    from demur.evaluation.capability.tasks import FOLDER

    folder, lm = local_data(tmp_path), tiny.lm("llama", torch.float32)
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    tasks = ["--tasks", str(FOLDER / "demur_arc_easy.yaml"), "--device", "cpu"]
    ours = commanded(folder, "--model", "demur", "--model_args", f"policy=none,model={folder / 'model'}", *tasks)
    theirs = commanded(folder, "--model", "hf", "--model_args", f"pretrained={folder / 'model'}", *tasks)
    assert ours == theirs
    assert ours[0]["demur_arc_easy"]["acc,none"] >= 0 and len(ours[1][0]) == 7
