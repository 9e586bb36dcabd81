"""`demur sae-report`: an SAE → how good it is, on text and at what it is for: one HTML page, Markdown, CSV."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from demur import runs
from demur.features.effect import Bench
from demur.features.examine import ExamineSettings, examine
from demur.files import write_json
from demur.models.load import ModelSettings
from demur.progress import say
from demur.reports.page import FIGURES, HTML, MARKDOWN
from demur.reports.sae import SHIPPED, headline, write_sae_report
from demur.sae.exchange.formats import DEMUR, format_of
from demur.steering.policies import shipped
from demur.verbs.output import DEFAULT_MODEL, show

DEFAULTS = ExamineSettings()
FINDINGS = "findings.json"


def sae_report_verb(
    sae: Path | None = None,
    *,
    text: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006 - never changed
    prompts: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    settings: Annotated[ExamineSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Measure an SAE, of any known format, and write what was found as one HTML page, Markdown and CSV.

    On text: variance unexplained, active, dead and dense features, what the model loses when the reconstruction takes
    the place of the stream, features that point the same way. At what it is for: how well gates of a few features read
    harm and refusal where the sources are new, and how much of both directions the reconstruction holds.

    Examples
    --------
    demur sae-report
    demur sae-report runs/sae/sae --run runs/sae-report
    demur sae-report gemma-scope/layer_20/width_16k/average_l0_71 --model google/gemma-2-2b

    Parameters
    ----------
    sae
        Folder or file of the SAE; by default the shipped one.
    text
        Files of text to measure on (JSONL); by default what the SAE's training run held out, else the data folder's
        texts, else our own prompts with replies.
    prompts
        Prompt files of several sources; by default those of the data folder, and our own training prompts.
    run
        Folder of the run; one that was stopped goes on.
    json
        Print one JSON object, and nothing else.
    """
    where = sae or shipped() / "sae"
    bench = Bench.open(where, model)
    known = format_of(where)
    stated = {"sae": bench.sae.hash, "model_hash": bench.lm.hash, "text": list(map(str, text))}
    stated |= {"prompts": list(map(str, prompts)), **settings.model_dump(mode="json")}
    folder = runs.open_run("sae-report", run, stated)
    say(f"run: {folder}")
    found = examine(bench, str(sae or SHIPPED), where, known[0] if known else DEMUR, text, prompts, settings, folder)
    write_json(folder / FINDINGS, found)
    runs.note(folder, sae=bench.sae.hash)
    made = write_sae_report(folder, found)
    paths = {"html": HTML, "markdown": MARKDOWN, "figures": FIGURES}
    body = found.model_dump(mode="json", exclude={"text": {"density", "nearest"}})
    show(
        {"run": str(folder)} | {name: str(folder / file) for name, file in paths.items()} | body,
        json,
        f"{headline(found)}\nwrote {made}\n      {folder / MARKDOWN}\n      {folder / FIGURES}\n"
        "next: open the page in a browser, or demur find" + (f" --sae {sae}" if sae else ""),
    )
