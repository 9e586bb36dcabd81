"""Progress bars and remarks, on stderr, so that stdout stays for results."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


def say(text: str) -> None:
    """A remark on stderr."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, total: int, what: str) -> None:
        self.progress, self.task = progress, progress.add_task(what, total=total, figures="")

    def step(self, n: int = 1, figures: str = "") -> None:
        """`n` more are done; `figures` are shown beside the bar."""
        self.progress.update(self.task, advance=n, figures=figures)


@contextmanager
def bar(what: str, total: int, done: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """A bar that counts to `total`; away from a terminal, only its last state is printed; `quiet` prints none."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ]
    with Progress(*columns, console=console, disable=quiet) as progress:
        line = Bar(progress, total, what)
        line.step(done)
        yield line
