"""The prompt sets that are known by name: where each lies on the Hugging Face hub, and which column is what.

File and column names were read off the sets' cards and public code that loads them. A set whose columns
change is an error that names them, never a set read wrongly.
"""

from typing import Any

from pydantic import Field

from demur.data.prompts import Split
from demur.records import Label, Record


class Part(Record):
    """Rows of one table that are of one source."""

    files: str
    """Pattern of its file in the hub's repository; the first match in order of names is read."""
    source: str
    columns: dict[str, str]
    """A prompt's field → the column it is made from."""
    split: Split = "test"
    label: Label | None = None
    """Of all rows; None where `columns` says it."""
    kind: str = "lookalike"
    """Of benign rows."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Only rows whose columns hold these values."""
    pair: str = ""
    """Begins the `pair` that joins a row to its twin, the number in `columns["pair"]` follows."""


class NamedSet(Record):
    """A prompt set known by name."""

    name: str
    about: str
    licence: str
    repo: str = ""
    """On the hub; empty for the sets that we ship."""
    gated: bool = False
    """Needs a token of somebody whom its owners gave access."""
    parts: tuple[Part, ...] = ()
    file: str = ""
    """A file in the data folder with the columns of the parts."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits it has, the one for measuring first."""
        every: tuple[Split, ...] = ("test", "train", "validation")
        return tuple(s for s in every if not self.parts or any(p.split == s for p in self.parts))


JBB = {"prompt": "Goal", "category": "Category", "pair": "Index"}
WILDGUARD = {"prompt": "prompt", "label": "prompt_harm_label", "category": "subcategory"}
XSTEST = {"prompt": "prompt", "category": "type"}
HARMFUL: dict[str, Any] = {"label": "harmful"}
BENIGN: dict[str, Any] = {"label": "benign"}

SETS = (
    NamedSet(
        name="demur",
        about="our own: 28 kinds of harm with twins, offensive but harmless, plain, mathematics",
        licence="Apache-2.0",
    ),
    NamedSet(
        name="chats",
        about="our own chats, harmless, up to each of the user's turns",
        licence="Apache-2.0",
    ),
    NamedSet(
        name="wrappers",
        about="our own prompts in jailbreaks of our own, 20 of each family and label",
        licence="Apache-2.0",
    ),
    NamedSet(
        name="wildguard",
        about="WildGuardMix: adversarial and plain prompts, harm rated by people (rows they disagree on left out)",
        licence="ODC-BY",
        repo="allenai/wildguardmix",
        gated=True,
        parts=tuple(
            Part(
                files=f"{split}/wildguard_{split}.parquet",
                source=f"wildguard_{source}",
                columns=WILDGUARD,
                split=split,
                where={"adversarial": source == "adversarial"},
            )
            for split in ("test", "train")
            for source in ("vanilla", "adversarial")
        ),
    ),
    NamedSet(
        name="xstest",
        about="250 safe prompts that look unsafe, 200 unsafe ones beside them",
        licence="CC-BY-4.0",
        repo="Paul/XSTest",
        parts=(
            Part(
                files="xstest_prompts.csv",
                source="xstest_safe",
                columns=XSTEST,
                where={"label": "safe"},
                label="benign",
            ),
            Part(
                files="xstest_prompts.csv",
                source="xstest_unsafe",
                columns=XSTEST,
                where={"label": "unsafe"},
                label="harmful",
            ),
        ),
    ),
    NamedSet(
        name="harmbench",
        about="HarmBench's standard behaviours; the hub's copy holds its 41 validation rows too",
        licence="MIT",
        repo="walledai/HarmBench",
        gated=True,
        parts=(
            Part(
                files="standard/train-*.parquet",
                source="harmbench_standard",
                columns={"prompt": "prompt", "category": "category"},
                **HARMFUL,
            ),
        ),
    ),
    NamedSet(
        name="jailbreakbench",
        about="100 harmful behaviours and 100 benign ones on the same subjects, joined by `pair`",
        licence="MIT",
        repo="JailbreakBench/JBB-Behaviors",
        parts=(
            Part(files="data/harmful-behaviors.csv", source="jbb_harmful", columns=JBB, pair="jbb", **HARMFUL),
            Part(files="data/benign-behaviors.csv", source="jbb_benign", columns=JBB, pair="jbb", **BENIGN),
        ),
    ),
    NamedSet(
        name="advbench",
        about="520 harmful instructions; easy and repetitive, for fitting: never the only test",
        licence="MIT",
        repo="walledai/AdvBench",
        gated=True,
        parts=(
            Part(
                files="data/train-*.parquet", source="advbench", columns={"prompt": "prompt"}, split="train", **HARMFUL
            ),
        ),
    ),
    NamedSet(
        name="strongreject",
        about="313 forbidden prompts of six kinds",
        licence="MIT",
        repo="walledai/StrongREJECT",
        gated=True,
        parts=(
            Part(
                files="data/train-*.parquet",
                source="strongreject",
                columns={"prompt": "prompt", "category": "category"},
                **HARMFUL,
            ),
        ),
    ),
    NamedSet(
        name="or-bench",
        about="OR-Bench-Hard-1K: prompts toned down by a machine that models refuse; train: a part of OR-Bench-80K",
        licence="CC-BY-4.0",
        repo="bench-llm/or-bench",
        parts=(
            Part(
                files="or-bench-hard-1k.csv",
                source="orbench_hard",
                columns={"prompt": "prompt", "category": "category"},
                **BENIGN,
            ),
            Part(
                files="or-bench-80k.csv",
                source="orbench80k_sample",
                columns={"prompt": "prompt", "category": "category"},
                split="train",
                **BENIGN,
            ),
        ),
    ),
    NamedSet(
        name="sorry-bench",
        about="SORRY-Bench of March 2025, its 440 plain prompts; seven of its 44 categories are merely offensive here",
        licence="its own, no redistribution",
        repo="sorry-bench/sorry-bench-202503",
        gated=True,
        parts=(
            Part(
                files="question.jsonl",
                source="sorry_bench",
                columns={"prompt": "turns", "category": "category"},
                where={"prompt_style": "base"},
                **HARMFUL,
            ),
        ),
    ),
    NamedSet(
        name="coconot",
        about="CoCoNot's requests with safety concerns and the contrast to them, without its other kinds of no",
        licence="ODC-BY",
        repo="allenai/coconot",
        parts=(
            Part(
                files="original/test-*.parquet",
                source="coconot_safety",
                columns={"prompt": "prompt", "category": "subcategory"},
                where={"category": "Requests with safety concerns"},
                **HARMFUL,
            ),
            Part(
                files="contrast/test-*.parquet",
                source="coconot_contrast",
                columns={"prompt": "prompt", "category": "subcategory"},
                where={"category": "Requests with safety concerns"},
                **BENIGN,
            ),
        ),
    ),
    NamedSet(
        name="do-not-answer",
        about="939 questions of twelve kinds; the last two (over-reliance) call for care rather than refusal",
        licence="Apache-2.0",
        repo="LibrAI/do-not-answer",
        parts=(
            Part(
                files="data/train-*.parquet",
                source="do_not_answer",
                columns={"prompt": "question", "category": "types_of_harm"},
                **HARMFUL,
            ),
        ),
    ),
    NamedSet(
        name="mt-bench",
        about="80 plain requests of eight kinds, their first turns",
        licence="Apache-2.0",
        repo="HuggingFaceH4/mt_bench_prompts",
        parts=(
            Part(
                files="raw/question.jsonl",
                source="mt_bench",
                columns={"prompt": "prompt", "category": "category"},
                kind="plain",
                **BENIGN,
            ),
        ),
    ),
    NamedSet(
        name="gsm8k",
        about="school mathematics as benign prompts; validation: questions of its training half",
        licence="MIT",
        repo="openai/gsm8k",
        parts=(
            Part(
                files="main/test-*.parquet",
                source="gsm8k",
                columns={"prompt": "question"},
                kind="mathematics",
                **BENIGN,
            ),
            Part(
                files="main/train-*.parquet",
                source="gsm8k_train",
                columns={"prompt": "question"},
                kind="mathematics",
                split="validation",
                **BENIGN,
            ),
        ),
        file="capability/gsm8k.jsonl",
    ),
)
NAMES = {s.name: s for s in SETS}
