"""`demur demo`: the whole line on the embedded model with what is shipped, computed afresh."""

from pathlib import Path

from demur.progress import say
from demur.reports.page import write_report
from demur.verbs.evaluate import evaluate_verb


def demo_verb(*, limit: int = 96, run: Path | None = None, json: bool = False) -> None:
    """Answer shipped test prompts plainly, as the paper did and behind our gate; write a report.

    Examples
    --------
    demur demo
    demur demo --limit 24

    Parameters
    ----------
    limit
        How many of the shipped test prompts.
    run
        Folder of the run.
    json
        Print one JSON object, and nothing else.
    """
    say("SmolLM2-135M-Instruct, the shipped SAE, three policies: none, paper, gated")
    folder = evaluate_verb(policy=["none", "paper", "gated"], limit=limit, run=run, json=json)
    say(f"report: {write_report(folder)}")
