"""Finished runs of `demur evaluate`, read from their files: rates for the figure, answers behind each point."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from demur.errors import FileError
from demur.files import nearest, read_json, read_jsonl
from demur.records import Rate, Transcript, Verdict, parse

RESULTS, TRANSCRIPTS, VERDICTS = "results.json", "transcripts.jsonl", "verdicts.jsonl"


class Point(NamedTuple):
    """One policy: what it refuses of harmful and of benign prompts."""

    policy: str
    harmful: Rate
    benign: Rate


class Answer(NamedTuple):
    """One reply, and what was said of it."""

    transcript: Transcript
    outcome: str
    why: str


class Run:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    @cached_property
    def points(self) -> list[Point]:
        """The policies that were asked prompts of both labels, in the run's order.

        Raises:
            FileError: the folder's results cannot be read.
            PromptError: they count more refusals than prompts.
        """
        counts: dict[str, dict[str, list[int]]] = {}
        for row in read_json(self.folder / RESULTS):
            try:
                refused = row["refused"]
                into = counts.setdefault(row["policy"], {}).setdefault(row["label"], [0, 0])
                if refused is not None:
                    into[0] += int(refused["k"])
                    into[1] += int(refused["n"])
            except (KeyError, TypeError, ValueError) as error:
                raise FileError(f"{self.folder / RESULTS} has a row without {error}; evaluate again.") from error
        both = {p: c for p, c in counts.items() if all(c.get(label, (0, 0))[1] for label in ("harmful", "benign"))}
        return [Point(p, Rate.of(*c["harmful"]), Rate.of(*c["benign"])) for p, c in both.items()]

    @cached_property
    def answers(self) -> list[Answer]:
        """All replies with the first judge's verdict.

        Raises:
            FileError: a file that cannot be read.
        """
        said: dict[tuple[str, str, str], Verdict] = {}
        for raw in read_jsonl(self.folder / VERDICTS):
            verdict = parse(Verdict, _known(Verdict, raw), self.folder / VERDICTS, FileError)
            said.setdefault((verdict.policy, verdict.set, verdict.id), verdict)
        found = []
        for raw in read_jsonl(self.folder / TRANSCRIPTS):
            t = parse(Transcript, _known(Transcript, raw), self.folder / TRANSCRIPTS, FileError)
            verdict = said.get((t.policy, t.set, t.id))
            found.append(Answer(t, (verdict and verdict.outcome) or "not judged", verdict.why if verdict else ""))
        return found


def find_runs(where: Path | None) -> list[Run]:
    """The runs in a folder, or the one that it is; the newest first.

    Raises:
        FileError: no such folder.
    """
    if where is None:
        return []
    if not where.is_dir():
        raise FileError(f"there are no runs at {where}{nearest(where)}")
    if (where / RESULTS).is_file():
        return [Run(where)]
    folders = [p.parent for p in where.glob(f"*/{RESULTS}") if (p.parent / TRANSCRIPTS).is_file()]
    return [Run(p) for p in sorted(folders, key=lambda p: (p / RESULTS).stat().st_mtime, reverse=True)]


def _known(kind: Any, raw: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in raw.items() if k in kind.model_fields}
