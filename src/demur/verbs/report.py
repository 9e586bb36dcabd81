"""`demur report`: a run → one self-contained HTML page, with Markdown and CSV beside it."""

from pathlib import Path

from demur import runs
from demur.errors import FileError
from demur.evaluation.runner import RESULTS
from demur.reports.page import CSV, MARKDOWN, write_report
from demur.verbs.output import show


def report_verb(run: Path | None = None, *, json: bool = False) -> None:
    """Write an evaluation as one HTML page that needs no network, with Markdown and CSV beside it.

    Examples
    --------
    demur report
    demur report --run runs/evaluate-20250131-120000

    Parameters
    ----------
    run
        Folder of a run of `demur evaluate`; by default the latest under runs/.
    json
        Print one JSON object with the paths, and nothing else.
    """
    page = write_report(run or latest(runs.HOME))
    others = {"markdown": str(page.with_name(MARKDOWN)), "csv": str(page.with_name(CSV))}
    show(
        {"run": str(page.parent), "html": str(page)} | others,
        json,
        f"wrote {page}\n      {others['markdown']}\n      {others['csv']}\n"
        f"next: open the page in a browser, or try a policy with demur chat",
    )


def latest(home: Path) -> Path:
    """The evaluation under `home` whose results were written last.

    Raises:
        FileError: there is none.
    """
    found = sorted(home.glob(f"*/{RESULTS}"), key=lambda path: (path.stat().st_mtime, path))
    if not found:
        raise FileError(
            f"no finished evaluation under {home}/; type `demur evaluate` first, or give a folder with --run."
        )
    return found[-1].parent
