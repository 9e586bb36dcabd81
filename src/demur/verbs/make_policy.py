"""`demur make-policy`: a model → its policy and a report, by the other verbs one after the other."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from demur import runs
from demur.activations.sample import SampleSettings
from demur.calibration.search import most_starts, need_optuna
from demur.calibration.settings import CALIBRATED, CalibrationSettings
from demur.config import locate
from demur.data.corpus import Source, documents, refused_conversations, tokenise
from demur.data.prompts import load_prompts
from demur.errors import DemurError, SettingsError
from demur.evaluation.runner import RESULTS, EvaluationSettings
from demur.features.find import FindSettings
from demur.files import read_json
from demur.models.chat import tokens_and_roles
from demur.models.load import LanguageModel, ModelSettings, load
from demur.models.shape import shape
from demur.progress import say
from demur.records import Message, PromptSet
from demur.reports.page import write_report
from demur.sae.settings import SAESettings
from demur.verbs.calibrate import FRONT, calibrate_verb
from demur.verbs.evaluate import evaluate_verb
from demur.verbs.find import find_verb
from demur.verbs.output import show
from demur.verbs.train import train_verb

TRAIN, FIND, CALIBRATE, EVALUATE = SAESettings(), FindSettings(), CalibrationSettings(), EvaluationSettings()
ENOUGH = 1_000_000
"""Tokens from which an SAE is worth having; with fewer a remark is made."""
Hidden = Parameter(show=False)


class Order(NamedTuple):
    """What is asked for."""

    folder: Path
    model: ModelSettings
    sae: Path | None
    train: SAESettings
    find: FindSettings
    calibrate: CalibrationSettings
    evaluate: EvaluationSettings
    given: PromptSet
    text: Sequence[Path]
    prompts: Sequence[Path]
    validation: Sequence[Path]
    test: Sequence[Path]
    limit: int

    @property
    def weights(self) -> Path:
        """The SAE."""
        return self.sae or self.folder / "train" / "sae"

    @property
    def features(self) -> Path:
        """What `demur find` writes."""
        return self.folder / "find" / "features.json"

    @property
    def policies(self) -> Path:
        """Where `demur calibrate` writes."""
        return self.folder / "calibrate"

    def stated(self) -> dict[str, Any]:
        """What must be the same when a run is gone on with."""
        return {
            "model": self.model.model_dump(),
            "sae": str(self.sae or ""),
            "prompts": self.given.hash,
            "files": [str(path) for path in (*self.text, *self.validation, *self.test)],
            "train": {} if self.sae else self.train.model_dump(mode="json"),
            "find": self.find.model_dump(mode="json"),
            "calibrate": self.calibrate.model_dump(mode="json", exclude={"trials", "minutes"}),
            "evaluate": self.evaluate.model_dump(mode="json") | {"limit": self.limit},
        }


class Stage(NamedTuple):
    """One verb's work."""

    name: str
    makes: Path
    """The file that says it is done."""
    what: str
    work: Callable[[], Any]


def make_policy_verb(
    model: str,
    *,
    sae: Path | None = None,
    site: str | None = None,
    text: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    validation: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    test: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    limit: int = 300,
    budget: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    device: str = "auto",
    train: Annotated[SAESettings, Hidden] = TRAIN,
    find: Annotated[FindSettings, Hidden] = FIND,
    calibrate: Annotated[CalibrationSettings, Hidden] = CALIBRATE,
    evaluate: Annotated[EvaluationSettings, Hidden] = EVALUATE,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Make a policy for a model: train an SAE (or open one), find features, calibrate, evaluate, write a report.

    Each stage is the verb of that name in a folder of its own, and goes on where it stopped; what is there is not made
    again. Every setting of a stage can be given: --train.d-sae 8192, --find.tried 48, --calibrate.trials 100,
    --evaluate.max-new-tokens 128 (`demur train --help` and so on name them), or in a config, [make-policy.find] tried = 48.

    Examples
    --------
    demur make-policy Qwen/Qwen2.5-0.5B-Instruct --text chat.jsonl --budget 0.02 --run runs/qwen
    demur make-policy models/mine --sae saes/mine --prompts harm.jsonl --prompts plain.jsonl --dry-run
    demur make-policy embedded --sae src/demur/shipped/smollm2-135m/sae --calibrate.minutes 20

    Parameters
    ----------
    model
        A folder, a GGUF file, a name on the Hugging Face hub, or `embedded`.
    sae
        An SAE of the model, in any format that demur knows; by default one is trained.
    site
        Where it is trained; by default just below the middle of the model.
    text
        Text to train it on (JSONL with `text` or `messages`, gzipped or not), all of it; may be repeated. By default only
        the harmful training prompts, refused in words of ours, and what the model replies to all of them.
    prompts
        Training prompts, harmful and benign; by default the shipped ones.
    validation
        Prompts on which everything is chosen; by default the shipped ones.
    test
        Prompts on which it is measured; by default the shipped ones.
    limit
        Take an even sample of so many rows of each test file.
    budget
        Share of plain prompts that may open the gate at level `standard`, as --calibrate.budget.
    dry_run
        Print the plan, and do nothing else.
    run
        Folder of the run; one that exists is gone on with.
    json
        Print one JSON object, and nothing else.
    """
    held = ModelSettings(model=model, dtype=dtype, device=device)
    if budget is not None:
        if not 0 < budget < 1:
            raise SettingsError(f"a budget of {budget:g}; expected a share between 0 and 1, such as --budget 0.02.")
        calibrate = calibrate.model_copy(update={"budget": budget})
    if find.method == "paper":
        raise SettingsError(
            "find.method paper finds no sensors, and a policy made here has a gate; give effect or contrast."
        )
    if sae is not None and site is not None:
        raise SettingsError(
            f"--site {site} says where to train an SAE, and --sae {sae} is trained; give one of the two."
        )
    if find.method == "effect" and calibrate.trials > most_starts(calibrate):
        need_optuna()  # said now, not after hours of training
    if sae is None:
        own = train.site if "site" in train.model_fields_set else (_middle(model),)
        if len(own) > 1:
            raise SettingsError(f"one policy is made, at one site (given: {', '.join(own)}); give one with --site.")
        train = train.model_copy(update={**held.model_dump(), "site": (site,) if site else own})
    folder, given = run or runs.HOME / f"make-policy-{Path(model).name}", load_prompts(prompts, "train")
    order = Order(
        folder, held, sae, train, find, calibrate, evaluate, given, text, prompts, validation, test, limit
    )  # fmt: skip
    stages = _stages(order)
    if dry_run:
        return _show_plan(order, stages, json)
    runs.open_run("make-policy", folder, order.stated())
    for number, stage in enumerate(stages, 1):
        done = stage.makes.is_file()
        say(f"{number}/{len(stages)} {stage.name}: {'there already' if done else stage.what}")
        if not done:
            _do(stage)
    policy, page = order.policies / "gated.toml", stages[-1].makes
    results = read_json(page.with_name(RESULTS))
    show(
        {"run": str(folder), "policy": str(policy), "report": str(page), "results": results},
        json,
        f"policy: {policy}\nreport: {page}\nnext: demur chat --model {model} --policy {policy} --sae {order.weights}",
    )


def _show_plan(order: Order, stages: Sequence[Stage], json: bool) -> None:
    body = [{"stage": s.name, "done": s.makes.is_file(), "what": s.what, "makes": str(s.makes)} for s in stages]
    plan = "\n".join(f"{s.name:10} {'there   ' if s.makes.is_file() else 'to make '} {s.what}" for s in stages)
    text = f"{plan}\nin {order.folder}\nnext: the same without --dry-run"
    show({"run": str(order.folder), "plan": body}, json, text)


def _do(stage: Stage) -> None:
    try:
        # What a stage prints is for a person who follows; stdout is for what comes of all of them.
        with redirect_stdout(sys.stderr):
            stage.work()
    except DemurError as error:
        raise type(error)(f"{stage.name}: {error}") from error


def _stages(o: Order) -> list[Stage]:
    trained = f"an SAE of {o.train.d_sae} features at {o.train.site[0]}, on {_text_in_words(o)}"
    budgets = ", ".join(f"{level} {100 * o.calibrate.budget_of(level, 'plain'):g} %" for level in CALIBRATED)
    found = f"features that write refusal and read harm, by {o.find.method}, on {o.given.name}"
    chosen = f"thresholds for false refusals ({budgets}), {o.calibrate.trials} ways to act"
    measured = f"none, gated and random on at most {o.limit} test prompts a file; a report"
    train = [] if o.sae else [Stage("train", o.weights / "sae.json", trained, lambda: _train(o))]
    return [
        *train,
        Stage("find", o.features, found, lambda: _find(o)),
        Stage("calibrate", o.policies / FRONT, chosen, lambda: _calibrate(o)),
        Stage("evaluate", o.folder / "evaluate" / "report.html", measured, lambda: _evaluate(o)),
    ]


def _train(o: Order) -> None:
    settings = o.train
    if not settings.text and settings.sampled is None:
        own = default_text(load(settings), o.given, o.text, o.folder, settings.seed)
        settings = settings.model_copy(update=own)
    train_verb(settings=settings, run=o.folder / "train")


def _find(o: Order) -> None:
    find_verb(
        sae=o.weights,
        prompts=list(o.prompts),
        validation=list(o.validation),
        settings=o.find,
        model=o.model,
        run=o.features.parent,
    )


def _calibrate(o: Order) -> None:
    calibrate_verb(
        features=o.features,
        sae=[o.weights],
        validation=list(o.validation),
        settings=o.calibrate,
        model=o.model,
        run=o.policies,
    )


def _evaluate(o: Order) -> None:
    folder = evaluate_verb(
        policy=["none", *(str(o.policies / f"{name}.toml") for name in ("gated", "random"))],
        prompts=list(o.test),
        limit=o.limit,
        sae=[o.weights],
        model=o.model,
        settings=o.evaluate,
        run=o.folder / "evaluate",
    )
    write_report(folder)


def _text_in_words(o: Order) -> str:
    if o.train.text or o.train.sampled:
        return "text as stated"
    harmful = sum(row.label == "harmful" for row in o.given.rows)
    own = f"{harmful} harmful prompts refused in words of ours and the model's replies to {len(o.given.rows)} prompts"
    return ", ".join([*map(str, o.text), own])


def default_text(lm: LanguageModel, given: PromptSet, text: Sequence[Path], folder: Path, seed: int) -> dict[str, Any]:
    """What an SAE is trained on where the user says nothing: see `make_policy_verb`.

    Raises:
        SettingsError: a model that has no chat template cannot be sampled from as it will be used, and there is no text.
    """
    if lm.tokenizer.chat_template is None and not text:
        raise SettingsError(
            f"{lm.name} has no chat template, so it has no replies to learn from; give plain text to train on with --text "
            "FILE.jsonl (rows with `text`)."
        )
    files = [Source(path=str(path), tokens=_tokens(lm, documents(locate(path)))) for path in text]
    if lm.tokenizer.chat_template is None:
        return {"text": tuple(files)}
    asked = folder / "prompts.jsonl"
    given.save(asked)
    refused = _tokens(lm, refused_conversations(asked, seed))
    # Every row that is sampled has its prompt's tokens at the least, so that the prompts are sure to last.
    least = sum(len(tokens_and_roles(lm, [Message(role="user", content=p)])[0]) for p in _openings(given))
    known = sum(s.tokens for s in files) + refused + least
    if known < ENOUGH:
        say(f"the SAE has {known:,} tokens to learn from; it will be better for {ENOUGH:,} or more: --text FILE.jsonl")
    return {
        "text": (*files, Source(path=str(asked), tokens=refused, refused=True)),
        "sampled": SampleSettings(prompts=(str(asked),), tokens=least),
    }


def _openings(given: PromptSet) -> set[str]:
    return {row.conversation[0].content for row in given.rows if len(row.conversation[0].content) < 1500}


def _tokens(lm: LanguageModel, every: Any) -> int:
    return sum(len(tokenise(lm.tokenizer, document)) for document in every)


def _middle(model: str) -> str:
    blocks = len(shape(model).blocks)
    return f"{min(blocks - 1, max(1, blocks // 2 - 1))}.resid_post"
