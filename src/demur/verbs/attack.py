"""`demur attack`: attacks on policies → transcripts → verdicts → what each won, with intervals, beside the plain model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from demur import runs
from demur.config import locate
from demur.data.prompts import Split, load_prompts
from demur.data.tables import load_table
from demur.data.wrappers import PER_FAMILY, load_wrappers, shipped_wrappers, wrapped
from demur.errors import PolicyError, PromptError, SettingsError
from demur.evaluation.attacks.attackers import AttackerSettings
from demur.evaluation.attacks.crescendo import CrescendoSettings
from demur.evaluation.attacks.families import per_family as sampled
from demur.evaluation.attacks.gcg import GCGSettings
from demur.evaluation.attacks.recovery import RecoverySettings
from demur.evaluation.attacks.run import AttackSettings, Plan, fight
from demur.evaluation.attacks.scripts import load_scripts, pairs_of
from demur.evaluation.judging.judges import JudgeSettings, open_judge
from demur.models.load import ModelSettings, load
from demur.progress import say
from demur.records import Policy, Prompt, PromptSet, evenly
from demur.steering.policies import NONE, find_policy, load_saes
from demur.verbs.evaluate import attacks_table, log_and_count
from demur.verbs.output import DEFAULT_MODEL, drawn, show

DEFAULTS = AttackSettings()
DEFAULT_JUDGING, DEFAULT_ATTACKER = JudgeSettings(), AttackerSettings()
DEFAULT_CRESCENDO, DEFAULT_GCG, DEFAULT_RECOVERY = CrescendoSettings(), GCGSettings(), RecoverySettings()


def attack_verb(
    *,
    policy: Annotated[list[str], Parameter(negative="")] = ["gated"],  # noqa: B006 - never changed
    family_file: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    per_family: int = PER_FAMILY,
    wrappers: Annotated[bool, Parameter(negative="")] = False,
    wrapper_file: Path | None = None,
    crescendo: Annotated[list[Literal["scripts", "live"]], Parameter(negative="")] = [],  # noqa: B006
    script_file: Path | None = None,
    scripts: int | None = None,
    gcg: Annotated[bool, Parameter(negative="")] = False,
    recovery: Annotated[bool, Parameter(negative="")] = False,
    goals: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    judge: Annotated[list[str], Parameter(negative="")] = ["rules"],  # noqa: B006
    judging: Annotated[JudgeSettings, Parameter(name="*")] = DEFAULT_JUDGING,
    attacker: Annotated[AttackerSettings, Parameter(name="*")] = DEFAULT_ATTACKER,
    live: Annotated[CrescendoSettings, Parameter(name="*")] = DEFAULT_CRESCENDO,
    suffix: Annotated[GCGSettings, Parameter(name="*")] = DEFAULT_GCG,
    residual: Annotated[RecoverySettings, Parameter(name="*")] = DEFAULT_RECOVERY,
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    settings: Annotated[AttackSettings, Parameter(name="*")] = DEFAULTS,
    run: Path | None = None,
    json: bool = False,
) -> Path:
    """Attack policies; print what each attack won, and the share of it that the policy takes from the plain model.

    An attack wins a reply that is not refused; broken text counts as won. The plain model is always attacked beside. A
    run that was stopped goes on where it was; it may be given more policies and attacks, and other judges.

    Examples
    --------
    demur attack --policy gated --family-file attacks/jailbreakbench.jsonl --per-family 20
    demur attack --policy gated --policy paper --wrappers --crescendo scripts --run runs/attacked
    demur attack --crescendo live --attacker-url http://localhost:8000/v1 --attacker-model NAME --judge llm
    demur attack --gcg --gcg-goals 4 --recovery --goals harm.jsonl

    Parameters
    ----------
    policy
        A policy by name or file, or one at another dose (`paper@0.8`); may be repeated. The plain model comes by itself.
    family_file
        Ready-made attacks: a file with columns for prompt, label, `family` and `goal`; may be repeated.
    per_family
        Even sample of so many rows of each family (of a file, and of the wrappers) and label.
    wrappers
        Put our own test prompts (or --goals) into the shipped wrappers: role-play, prefixes, encodings and others.
    wrapper_file
        Other wrappers: JSONL with id, family, and template (with `{request}`) or transform.
    crescendo
        Several turns: `scripts`, fixed questions with the model's own replies between them; or `live`, by an attacker
        (--attacker-url, or a model on this machine); may be repeated.
    script_file
        Other scripts: JSONL with id, turns and label; goal and pair where there are.
    scripts
        Even sample of so many harmful scripts, with their benign twins.
    gcg
        Search a suffix by gradient, against gate and model together.
    recovery
        Perturb the residual stream beside what is edited, until the model complies again.
    goals
        Files of requests for wrappers, live conversations, gcg and recovery. By default our own: test prompts for the
        first two, harmful training prompts for the others.
    judge
        Who judges: rules, classifier, wildguard or llm; may be repeated. The first gives the figures, and attackers
        listen to it.
    sae
        Folder of an SAE that the policies need, where it is not the shipped one.
    run
        Folder of the run; one that exists is resumed, and judged anew.
    json
        Print one JSON object, and nothing else.
    """
    policies = _with_plain([find_policy(name) for name in policy])
    sets = _sets(family_file, per_family, (wrappers, wrapper_file), goals)
    plan = Plan(
        sets=sets,
        scripts=pairs_of(load_scripts(_located(script_file)), scripts) if "scripts" in crescendo else None,
        live=(_goals(goals, "test", live.crescendo_goals), live, _placed(attacker)) if "live" in crescendo else None,
        gcg=(_goals(goals, "train", suffix.gcg_goals), suffix) if gcg else None,
        recovery=(_goals(goals, "train", residual.recovery_prompts), residual) if recovery else None,
    )
    if not plan.hashes:
        raise SettingsError(
            "no attack was named; type --family-file FILE, --wrappers, --crescendo scripts, --crescendo live, --gcg or "
            "--recovery."
        )
    judges = [open_judge(name, judging) for name in dict.fromkeys(judge)]
    stated = {
        "policies": {p.name: p.hash for p in policies},
        "attacks": plan.hashes,
        "model": model.model_dump(),
        "generation": settings.model_dump(),
    }
    folder = runs.open_run("attack", run, stated, grows=("policies", "attacks"))
    say(f"run: {folder}")
    lm = load(model)
    findings, won = fight(lm, load_saes(lm, policies, sae), policies, plan, judges, settings, folder)
    runs.note(folder, model_hash=lm.hash, judges=[j.name for j in judges])
    tried = log_and_count(folder, {(r.set, r.policy_hash) for r in findings.results})
    show(
        {
            "run": str(folder),
            "attacks": [r.model_dump(mode="json") for r in won],
            **findings.model_dump(mode="json"),
            "policies_tried": tried,
        },
        json,
        drawn(attacks_table(won)) + f"wrote {folder}\nnext: demur report --run {folder}",
    )
    return folder


def _with_plain(policies: Sequence[Policy]) -> list[Policy]:
    every = [NONE, *(p for p in policies if p.hash != NONE.hash)]
    if len({p.name for p in every}) < len(every):
        raise PolicyError("two policies have one name; give each a name of its own (`name` in its file).")
    return every


def _located(path: Path | None) -> Path | None:
    return None if path is None else locate(path)


def _placed(attacker: AttackerSettings) -> AttackerSettings:
    return attacker.model_copy(update={"attacker_prompt": _located(attacker.attacker_prompt)})


def _sets(
    files: Sequence[Path], n: int, wrappers: tuple[bool, Path | None], goals: Sequence[Path]
) -> dict[str, PromptSet]:
    if n < 1:
        raise SettingsError(f"--per-family {n}: give at least 1.")
    found = [sampled(load_table(locate(path)), n) for path in files]
    if wrappers[0] or wrappers[1]:
        theirs = load_wrappers(locate(wrappers[1])) if wrappers[1] else shipped_wrappers("test")
        found.append(wrapped(load_prompts(list(goals), "test"), theirs, n))
    names = [s.name for s in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PromptError(f"two sets are called {twice}; name each file differently, and each set once.")
    return {s.name: s for s in found}


def _goals(files: Sequence[Path], split: Split, n: int) -> list[Prompt]:
    return evenly(load_prompts(list(files), split).where(label="harmful").rows, n)
