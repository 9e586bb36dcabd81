"""Everything that is measured of one SAE for `demur sae-report`, part by part, so that a run that was stopped goes on."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from pydantic import Field

from demur.config import Settings, locate
from demur.data.corpus import Sequences, Source, take, tokenise
from demur.data.prompts import shipped_prompts
from demur.data.tables import load_table
from demur.evaluation.capability.divergence import TEXTS
from demur.evaluation.judging.fitting import PEOPLE, people_replies, shipped_replies
from demur.features.effect import Bench
from demur.features.find import both_replies, spread
from demur.features.purpose import Direction, Purpose, harm, refusal, said
from demur.files import read_json
from demur.models.load import LanguageModel
from demur.records import HeldOut, PromptSet, Record, evenly
from demur.runs import MANIFEST, part
from demur.sae.quality import Quality, Tally, nearest, tally
from demur.sae.sae import SAEConfig
from demur.sae.settings import SAESettings
from demur.sae.train import TEXT, gather_text

FILES = ("text/chat_refusals_open.jsonl.gz", *TEXTS)
"""Of the data folder; training the shipped SAE left the ends of them unread."""
PROMPTS = ("prompts/train.jsonl", "prompts/dev.jsonl")
"""Of the data folder, beside our own training prompts; never test prompts."""


class ExamineSettings(Settings):
    """On how much an SAE is measured."""

    tokens: int = Field(default=6000, gt=100)
    """Tokens of each text."""
    spliced: float = Field(default=0.25, gt=0, le=1)
    """Share of the text on which the losses are taken; they cost several times what reading does."""
    length: int = Field(default=256, gt=1)
    """Longest sequence, in tokens."""
    per_source: int = Field(default=100, gt=0)
    """Most prompts, or replies, of each source, label and kind."""
    sensors: int = Field(default=64, gt=0)
    """Features of the gates."""
    replies: int = Field(default=48, gt=1)
    """Harmful prompts whose replies give the refusal direction."""
    seed: int = 0
    """Of the draws and the intervals."""


class OnText(Record):
    """Figures on held-out text."""

    about: str
    """Which text."""
    whole: Quality
    by_text: dict[str, Quality]
    density: tuple[float, ...]
    """Share of the tokens on which each feature is active."""
    nearest: tuple[float, ...]
    """Each decoder row's largest cosine with another."""


class Findings(Record):
    """All that is known of an SAE."""

    name: str
    """As it was given."""
    format: str
    hash: str
    config: SAEConfig
    text: OnText
    harm: Purpose
    refusal: Purpose

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of harm and of refusal."""
        return self.harm.direction, self.refusal.direction

    @property
    def gates(self) -> dict[str, tuple[HeldOut, ...]]:
        """By what they read."""
        return {"harm": self.harm.held_out, "refusal": self.refusal.held_out}


def examine(
    bench: Bench,
    name: str,
    where: Path,
    format: str,
    texts: Sequence[Path],
    prompts: Sequence[Path],
    settings: ExamineSettings,
    folder: Path,
) -> Findings:
    """Measures an SAE; what lies in the folder already is taken from there.

    Args:
        bench: Model and SAE.
        name: What to call the SAE.
        where: Where it is; if that is a run of `demur train`, the text which that run held out is used.
        format: Of its files.
        texts: Files of text instead.
        prompts: Prompt files for the gates; by default those of the data folder and our own.
        settings: On how much.
        folder: Of the run.

    Raises:
        FileError, PromptError: a file that cannot be used, or too little in it.
    """
    s = settings

    def text() -> OnText:
        about, found = held_out_texts(bench, where, texts, s)
        tallies = tally(bench.lm, bench.sae, found, spliced=s.spliced)
        whole = sum(tallies.values(), start=Tally.of(bench.sae))
        return OnText(
            about=about,
            whole=whole.quality,
            by_text={name: t.quality for name, t in tallies.items()},
            density=tuple(whole.density.tolist()),
            nearest=tuple(nearest(bench.sae).tolist()),
        )

    def of_refusal() -> Purpose:
        replies = shipped_replies() + (people_replies() if locate(PEOPLE).is_file() else [])
        harmful = spread(shipped_prompts("train").where(label="harmful"), s.replies)
        both = both_replies(bench, harmful, s.seed)
        complied = [i for i, refused in enumerate(both.refused) if not refused]
        plain = [both.plain[i] for i in complied]
        return refusal(
            bench, said(bench, replies, s.per_source), [harmful[i] for i in complied], plain, s.sensors, s.seed
        )

    return Findings(
        name=name,
        format=format,
        hash=bench.sae.hash,
        config=bench.sae.config,
        text=part(folder, "text", OnText, text),
        harm=part(
            folder,
            "harm",
            Purpose,
            lambda: harm(bench, harm_prompts(prompts), s.per_source, s.sensors, s.seed),
        ),
        refusal=part(folder, "refusal", Purpose, of_refusal),
    )


def held_out_texts(
    bench: Bench, where: Path, files: Sequence[Path], settings: ExamineSettings
) -> tuple[str, dict[str, Sequences]]:
    """Text to measure on, by name, and which it is: as given, else the training run's, else the data folder's, else ours.

    Raises:
        FileError, PromptError: a file that is none, or too short.
    """
    lm, s = bench.lm, settings
    if not files and (run := where.absolute().parent) and (run / TEXT).is_file():
        trained = SAESettings.model_validate(read_json(run / MANIFEST)["settings"])
        text = gather_text(lm, trained, run)[1]
        return f"what {run.name} held out of training", {"held out": _cut(text, s.tokens * len(FILES))}
    named = [str(f) for f in files] or [f for f in FILES if locate(f).is_file()]
    if named:
        last = not files
        found = {
            PurePath(path).name.split(".")[0]: Sequences.of(
                take(lm.tokenizer, Source(path=path, tokens=s.tokens), s.length, s.seed, last=last)
            )
            for path in named
        }
        about = "the ends of the data folder's texts, which training with seed 0 comes to last" if last else "as given"
        return about, found
    return "our own prompts, with the model's replies and with refusals that we wrote", _own(bench, s)


def harm_prompts(files: Sequence[Path]) -> PromptSet:
    """Prompts of many sources: as given, else those of the data folder for training and choosing, and our own.

    Raises:
        FileError, PromptError: a file that cannot be used.
    """
    ours = [] if files else [shipped_prompts("train")]
    sets = [load_table(locate(p)) for p in files or [p for p in PROMPTS if locate(p).is_file()]] + ours
    return PromptSet(name="+".join(s.name for s in sets), rows=tuple(row for s in sets for row in s.rows))


def _cut(text: Sequences, tokens: int) -> Sequences:
    # The first sequences that make up so many tokens.
    ends = text.offsets[1:]
    return text.split(max(1, int((ends <= tokens).sum())))[0]


def _own(bench: Bench, settings: ExamineSettings) -> dict[str, Sequences]:
    lm, ours = bench.lm, shipped_prompts("train")
    found = {}
    for name, rows in (
        ("benign, answered", ours.where(label="benign").rows),
        ("harmful, answered or refused", ours.where(label="harmful").rows),
    ):
        chosen = evenly(rows, max(8, settings.tokens // 100))
        both = both_replies(bench, chosen, settings.seed)
        replies = both.plain if name.startswith("benign") else [*both.plain, *both.ours]
        talk = both.conversations if name.startswith("benign") else [*both.conversations, *both.conversations]
        found[name] = Sequences.of([_whole(lm, c, r)[: settings.length] for c, r in zip(talk, replies, strict=True)])
    return found


def _whole(lm: LanguageModel, conversation: Sequence, reply: list[int]) -> list[int]:
    text = lm.tokenizer.decode(reply, skip_special_tokens=True)
    turns = [m.model_dump() for m in conversation] + [{"role": "assistant", "content": text}]
    if lm.tokenizer.chat_template is None:
        return tokenise(lm.tokenizer, f"{conversation[-1].content}\n{text}")
    return tokenise(lm.tokenizer, turns)
