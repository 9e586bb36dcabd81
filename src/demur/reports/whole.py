"""A study as a report: which sections there are, and in what order."""

from demur.reports import attacks, capability, checks, controls, equal, origin, refusal, summary
from demur.reports.blocks import Report
from demur.reports.study import Study
from demur.reports.words import clean, listed

NAMED = 4
"""Policies that a title can carry."""


def report(study: Study) -> Report:
    """Everything but the examples; what the run did not measure has no section."""
    sections = [
        refusal.glance(study),
        refusal.against_plain(study),
        equal.equal(study),
        attacks.attacks(study),
        refusal.by_set(study) if study.results else None,
        refusal.by_category(study),
        controls.gate(study),
        controls.arms(study),
        controls.doses(study),
        capability.capability(study),
        capability.divergence(study),
        checks.quality(study),
        refusal.outcomes(study),
        checks.judges(study),
        origin.made(study),
    ]
    names = [clean(p) for p in study.policies]
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    model = origin.model_name(study)
    return Report(
        kind=" · ".join(["demur evaluation", f"run {study.folder.absolute().name}", *([model] if model else [])]),
        title=f"Refusal report: {listed(names)}",
        headline=summary.headline(study),
        about=_about(study),
        points=summary.take_home(study),
        sections=[s for s in sections if s],
        facts=origin.facts(study),
        again="demur report FOLDER",
        hero=refusal.hero(study),
    )


def _about(study: Study) -> str:
    asked = [f"{study.prompts(label)} {label}" for label in study.labels]
    tasks = len({r.task for r in study.capability})
    what = [f"{listed(asked)} prompts"] if asked else []
    what += [f"{tasks} capability task{'s' if tasks > 1 else ''}"] if tasks else []
    said = f"{listed(what)}, under {len(study.policies)} {'policies' if len(study.policies) > 1 else 'policy'}."
    if asked:
        said += " “Refused” counts outright refusals only; broken text never counts."
    return f"{said} Intervals are 95 % (Wilson)."
