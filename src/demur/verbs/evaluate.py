"""`demur evaluate`: policies × prompt sets → transcripts → verdicts → a table with intervals; and capability."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from demur import runs
from demur.config import locate
from demur.data.prompts import shipped_prompts
from demur.data.sets import named_set
from demur.data.tables import load_table, parse_columns
from demur.errors import PolicyError, PromptError, SettingsError
from demur.evaluation.attacks.run import families_won
from demur.evaluation.attacks.success import AttackResult
from demur.evaluation.judging.judges import JudgeSettings, open_judge
from demur.evaluation.runner import EvaluationSettings, Findings, evaluate, total
from demur.evaluation.statistics import Rate
from demur.files import read_jsonl, write_json
from demur.models.load import LanguageModel, ModelSettings, load
from demur.progress import say
from demur.records import Policy, PromptSet
from demur.steering.policies import find_policy, load_saes
from demur.verbs.output import DEFAULT_MODEL, drawn, show

DEFAULTS = EvaluationSettings()
DEFAULT_JUDGING = JudgeSettings()


def evaluate_verb(
    *,
    policy: Annotated[list[str], Parameter(negative="")] = ["none", "paper", "gated"],  # noqa: B006 - never changed
    set: Annotated[list[str], Parameter(negative="")] = [],  # noqa: B006
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    columns: str = "",
    limit: int | None = None,
    capability: Annotated[list[str], Parameter(negative="")] = [],  # noqa: B006
    templated: bool = False,
    divergence: int = 0,
    judge: Annotated[list[str], Parameter(negative="")] = ["rules"],  # noqa: B006
    judging: Annotated[JudgeSettings, Parameter(name="*")] = DEFAULT_JUDGING,
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    settings: Annotated[EvaluationSettings, Parameter(name="*")] = DEFAULTS,
    run: Path | None = None,
    json: bool = False,
) -> Path:
    """Answer prompts under each policy, judge the replies, print refusal rates with 95 % intervals.

    A run that was stopped goes on where it was; it may be given more policies and sets, and other judges, and makes
    only what it does not have.

    Examples
    --------
    demur evaluate --policy none --policy gated --set xstest --set harmbench
    demur evaluate --policy my.toml --policy paper@0.8 --prompts harm.jsonl --limit 100 --json
    demur evaluate --run runs/evaluate-1 --set xstest --judge rules --judge classifier
    demur evaluate --policy none --policy gated --set mt-bench --capability arc_easy:500 --capability gsm8k:50

    Parameters
    ----------
    policy
        A policy by name or file, or one at another dose (`paper@0.8`); may be repeated.
    set
        A prompt set by name (`demur sets` lists them), or an even sample of it (`xstest:100`); may be repeated. By
        default the shipped test prompts.
    prompts
        A JSONL, CSV or Parquet file with a column for the prompt and one for the label; may be repeated.
    columns
        Which columns of those files are meant, where their names do not say: `prompt=goal,label=is_bad`.
    limit
        Take an even sample of so many rows of each set that does not say its own number.
    capability
        A task (arc_easy, piqa, copa, mmlu, truthfulqa_mc0, truthfulqa_mc1, gsm8k, or any of lm-eval's), or an even
        sample of it (`arc_easy:500`); may be repeated. Needs the extra `eval`.
    templated
        Ask those tasks in the chat template, not as raw text.
    divergence
        Passages of each held-out text of the data folder on which plain and steered model are compared token by token
        (KL divergence, perplexity); none by default.
    judge
        Who judges the replies: rules, classifier, wildguard or llm; may be repeated. The first that was not trained on
        a set's replies gives its figures; how far two judges agree is shown.
    sae
        Folder of an SAE that the policies need, where it is not the shipped one.
    run
        Folder of the run; one that exists is resumed, and judged anew.
    json
        Print one JSON object, and nothing else.
    """
    policies = [find_policy(name) for name in policy]
    if len({p.name for p in policies}) < len(policies):
        raise PolicyError(f"two policies are called {policy}; give each a name of its own (`name` in its file).")
    tasks = dict(map(sampled, capability))
    sets = _sets(set, prompts, columns, limit, default=not tasks)
    judges = [open_judge(name, judging) for name in dict.fromkeys(judge)]
    stated = {
        "policies": {p.name: p.hash for p in policies},
        "sets": {s.name: s.hash for s in sets},
        "model": model.model_dump(),
        "generation": settings.model_dump(),
    }
    folder = runs.open_run("evaluate", run, stated, grows=("policies", "sets"))
    say(f"run: {folder}")
    lm = load(model)
    saes = load_saes(lm, policies, sae)
    found = evaluate(lm, saes, policies, sets, judges, settings, folder) if sets else Findings(results=[])
    able = _capability(lm, saes, policies, tasks, templated, settings.batch, folder) if tasks else []
    won = families_won(folder, policies, sets, judges)
    moved = _divergence(lm, saes, policies, divergence, folder) if divergence else []
    runs.note(
        folder,
        model_hash=lm.hash,
        judges=[j.name for j in judges],
        sets=[s.origin.model_dump(mode="json") for s in sets if s.origin],
    )
    measured = {(r.set, r.policy_hash) for r in found.results}
    tried = log_and_count(folder, measured | {(r.task, r.policy_hash) for r in able})
    text = drawn(results_table(found, tried)) if found.results else ""
    if won:
        text += drawn(attacks_table(won))
    if able:
        from demur.evaluation.capability.measure import capability_table

        text += drawn(capability_table(able))
    if moved:
        text += drawn(divergence_table(moved))
    show(
        {
            "run": str(folder),
            **found.model_dump(mode="json"),
            "attacks": [r.model_dump(mode="json") for r in won],
            "capability": [r.model_dump(mode="json") for r in able],
            "divergence": [r.model_dump(mode="json") for r in moved],
            "policies_tried": tried,
        },
        json,
        text + f"wrote {folder}\nnext: demur report --run {folder}",
    )
    return folder


def sampled(spec: str) -> tuple[str, int | None]:
    """`NAME` or `NAME:N`.

    Raises:
        SettingsError: a number that is none.
    """
    name, colon, number = spec.partition(":")
    if colon and not (number.isdigit() and int(number)):
        raise SettingsError(f"{spec!r}: {number!r} is no number of rows; write, for instance, {name}:100.")
    return name, int(number) if colon else None


def _sets(
    names: Sequence[str], files: Sequence[Path], columns: str, limit: int | None, default: bool
) -> list[PromptSet]:
    found = []
    for spec in names:
        name, n = sampled(spec)
        found.append((named_set(name), n or limit))
    found += [(load_table(locate(path), parse_columns(columns)), limit) for path in files]
    if not found and default:
        found = [(shipped_prompts("test"), limit)]
    sets = [s.sample(n) if n else s for s, n in found]
    names_ = [s.name for s in sets]
    if twice := next((name for name in names_ if names_.count(name) > 1), None):
        raise PromptError(f"two sets are called {twice}; name each file differently, and each set once.")
    return sets


def _capability(
    lm: LanguageModel,
    saes: dict[str, Any],
    policies: Sequence[Policy],
    tasks: dict[str, int | None],
    templated: bool,
    batch: int,
    folder: Path,
) -> list[Any]:
    from demur.evaluation.capability.measure import measure

    return measure(lm, saes, policies, tasks, folder, batch=batch, templated=templated)


def _divergence(
    lm: LanguageModel, saes: dict[str, Any], policies: Sequence[Policy], passages_: int, folder: Path
) -> list[Any]:
    from demur.evaluation.capability.divergence import RESULTS, divergence, passages

    found = divergence(lm, saes, policies, passages(lm, n=passages_))
    write_json(folder / RESULTS, [d.model_dump(mode="json") for d in found])
    return found


def log_and_count(folder: Path, measured: set[tuple[str, str]]) -> dict[str, int]:
    """Logs what was measured on what, and says how many different policies have been measured on each set so far."""
    log = folder.parent / runs.TEST_LOG
    for name, digest in sorted(measured):
        runs.log_test(folder.parent, set=name, policy_hash=digest, run=folder.name)
    seen = {(row["set"], row["policy_hash"]) for row in (read_jsonl(log) if log.is_file() else ())}
    return {name: sum(s == name for s, _ in seen) for name in dict.fromkeys(name for name, _ in sorted(measured))}


def results_table(found: Findings, tried: dict[str, int]) -> Table:
    """Sets down, policies across: share refused with its 95 % interval."""
    results = found.results
    policies = list(dict.fromkeys(r.policy for r in results))
    table = Table(title="Refused, with 95 % Wilson intervals", title_justify="left", caption_justify="left")
    for column in ("set", "label", "kind"):
        table.add_column(column)
    table.add_column("n", justify="right")
    for name in policies:
        table.add_column(name, justify="right")
    for key in dict.fromkeys((r.set, r.label, r.kind) for r in results):
        cells = {r.policy: r for r in results if (r.set, r.label, r.kind) == key}
        rates = [cells[name].refused if name in cells else None for name in policies]
        table.add_row(key[0], key[1], key[2] or "-", str(next(iter(cells.values())).n), *map(_cell, rates))
    table.add_section()
    for label in dict.fromkeys(r.label for r in results):
        sums = [total(results, name, label) for name in policies]
        table.add_row("all sets", label, "", str(max(s.n for s in sums if s)), *map(_cell, sums))
    table.caption = "; ".join(_footnotes(found, policies, tried))
    return table


def attacks_table(won: Sequence[AttackResult]) -> Table:
    """Attacks down, policies across: what was won, and of that the share that the policy takes from the plain model."""
    policies = list(dict.fromkeys(r.policy for r in won))
    table = Table(title="Not refused, with 95 % intervals", title_justify="left", caption_justify="left")
    for column in ("attack", "family", "label"):
        table.add_column(column)
    table.add_column("n", justify="right")
    for name in policies:
        table.add_column(name, justify="right")
    last = ""
    for key in dict.fromkeys((r.attack, r.family, r.label, r.control) for r in won):
        if last and key[0] != last:
            table.add_section()
        last = key[0]
        cells = {r.policy: r for r in won if (r.attack, r.family, r.label, r.control) == key}
        n = max(r.n for r in cells.values())
        family = f"({key[1]})" if key[3] else key[1]
        table.add_row(key[0], family, key[2], str(n), *(_won(cells.get(name)) for name in policies))
    broken = ", ".join(f"{p} {sum(r.degenerate for r in won if r.policy == p and not r.control)}" for p in policies)
    table.caption = (
        "beneath: the share of the plain model's that the policy takes away, and in how many cases it acted; families in "
        f"brackets are controls; of benign cases, not refused is as it should be; degenerate replies among those: {broken}"
    )
    return table


def _won(r: AttackResult | None) -> str:
    if r is None or r.success is None:
        return "-"
    lines = [f"{100 * r.success.rate:.1f} % [{100 * r.success.low:.1f}, {100 * r.success.high:.1f}]"]
    if r.cut is not None:
        lines.append(f"cut {100 * r.cut.share:.0f} % [{100 * r.cut.low:.0f}, {100 * r.cut.high:.0f}], acted {r.opened}")
    if r.refused_before is not None and r.refused_before.k:
        lines.append(f"refused before the end: {r.refused_before.k}")
    if r.figures:
        lines.append(", ".join(f"{name} {value:.3g}" for name, value in r.figures.items()))
    return "\n".join(lines)


def divergence_table(found: Sequence[Any]) -> Table:
    """Held-out texts down, policies across: how far the policy moves the model on them."""
    policies = list(dict.fromkeys(d.policy for d in found))
    table = Table(title="KL(plain ‖ steered), nats a token, with 95 % intervals", title_justify="left")
    for column in ("text", "tokens", *policies):
        table.add_column(column, justify="left" if column == "text" else "right")
    for source in dict.fromkeys(d.source for d in found):
        cells = {d.policy: d for d in found if d.source == source}
        moved = [str(d.kl) if (d := cells[p]).kl else "-" for p in policies]
        table.add_row(source, str(next(iter(cells.values())).tokens), *moved)
    return table


def _footnotes(found: Findings, policies: Sequence[str], tried: dict[str, int]) -> list[str]:
    results = found.results
    broken = {name: sum(r.outcomes.get("degenerate", 0) for r in results if r.policy == name) for name in policies}
    judged = {judge: [r.set for r in results if r.judge == judge] for judge in dict.fromkeys(r.judge for r in results)}
    notes = ["degenerate replies (never counted as refused): " + ", ".join(f"{n} {k}" for n, k in broken.items())]
    if len(judged) == 1:
        notes.append(f"judged by {next(iter(judged))}")
    else:
        notes += [f"{', '.join(dict.fromkeys(sets))} judged by {judge}" for judge, sets in judged.items()]
    if unjudged := sum(r.unjudged for r in results):
        notes.append(f"{unjudged} replies could not be judged and are left out")
    for a in found.judges:
        notes.append(f"{a.judges[0]} and {a.judges[1]} agree on {a.policy}: {a.agree}")
    notes.append("policies tried on each set so far: " + ", ".join(f"{name} {count}" for name, count in tried.items()))
    return notes


def _cell(rate: Rate | None) -> str:
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" if rate else "-"
