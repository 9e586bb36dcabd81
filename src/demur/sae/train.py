"""Text → SAE: one pass over the text, one SAE for each site."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demur.activations.sample import sample
from demur.activations.stream import ActivationStream
from demur.data.corpus import Sequences, take
from demur.errors import FileError, SettingsError
from demur.files import replacing
from demur.models.load import LanguageModel, tokenizer_hash
from demur.models.memory import keep_freed_memory
from demur.progress import bar
from demur.sae.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from demur.sae.ranks import ALONE, Ranks
from demur.sae.sae import SAE
from demur.sae.settings import SAESettings
from demur.sae.trainer import Trainer

TEXT = "text.safetensors"
SHOWN_EVERY = 0.5
"""Seconds between looks at the figures."""


def gather_text(
    lm: LanguageModel, settings: SAESettings, folder: Path, ranks: Ranks = ALONE
) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences; tokenised and sampled once, then kept in the run as `text.safetensors`.

    Raises:
        SettingsError: no text.
        FileError: the text kept there is of another tokenizer, or cannot be read.
    """
    if not settings.text and settings.sampled is None:
        raise SettingsError("no text to train on; name files under `text`, or `sampled` prompts, in the config.")
    kept, tokenizer = folder / TEXT, tokenizer_hash(lm.tokenizer)
    if ranks.first and not kept.is_file():
        rows: list[Sequence[int] | np.ndarray] = []
        for source in settings.text:
            rows += take(lm.tokenizer, source, settings.length, settings.seed)
        if settings.sampled is not None:
            rows += sample(lm, settings.sampled, settings.length, settings.seed)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        text = Sequences.of([rows[i] for i in order])
        with replacing(kept) as tmp:
            tensors = {"tokens": torch.from_numpy(text.tokens), "offsets": torch.from_numpy(text.offsets)}
            save_file(tensors, tmp, metadata={"tokenizer": tokenizer})
    ranks.meet()
    text = _kept_text(kept, tokenizer, lm)
    return text.split(len(text) - max(1, round(settings.held_out * len(text))))


def _kept_text(path: Path, tokenizer: str, lm: LanguageModel) -> Sequences:
    mend = f"delete {path} to tokenise the text again, and {CHECKPOINT} beside it."
    try:
        with safe_open(path, framework="pt") as file:
            made_with = (file.metadata() or {}).get("tokenizer", tokenizer)
        loaded = load_file(path)
    except Exception as error:  # safetensors raises its own kind, and OSError
        raise FileError(f"{path} cannot be read ({error}); {mend}") from error
    if made_with != tokenizer:
        raise FileError(f"{path} was made with another tokenizer than that of {lm.name}; {mend}")
    embedded = lm.model.get_input_embeddings().weight.shape[0]
    if int(loaded["tokens"].max()) >= embedded:
        raise SettingsError(
            f"the tokenizer gives token {int(loaded['tokens'].max())}, but {lm.name} has {embedded} embeddings; "
            "give the tokenizer that belongs to the model."
        )
    return Sequences(loaded["tokens"].numpy(), loaded["offsets"].numpy())


def train(
    lm: LanguageModel,
    text: Sequences,
    settings: SAESettings,
    folder: Path,
    after_step: Callable[[Trainer], None] | None = None,
    ranks: Ranks = ALONE,
) -> list[SAE]:
    """Trains an SAE for each site on one pass over the text; a checkpoint in `folder` is taken up where it stood.

    Raises:
        FileError: a checkpoint or shard that cannot be read, or a full disk.
        SettingsError: a batch that cannot be shared out evenly, or too little text.
        TrainingError: activations that are not finite, or another process ended.
    """
    keep_freed_memory(lm.device)
    if settings.batch % ranks.size:
        raise SettingsError(f"a batch of {settings.batch} cannot be shared by {ranks.size} processes; change --batch.")
    if settings.batch // ranks.size > settings.buffer:
        raise SettingsError(
            f"a batch of {settings.batch // ranks.size} tokens is more than the shuffle buffer of {settings.buffer}; give a "
            "larger --buffer or a smaller --batch."
        )
    share, cache = (ranks.rank, ranks.size), Path(settings.cache) if settings.cache else None
    stream = ActivationStream(lm, settings.site, text, settings.buffer, settings.seed, share, cache)
    if not stream.groups:
        raise SettingsError(f"too little text for {ranks.size} processes; start fewer.")
    steps = math.ceil(int((text.lengths() - 1).sum()) / settings.batch)
    trainers = [Trainer(lm.d_model, settings, steps, lm.device, ranks) for _ in settings.site]
    load_checkpoint(folder, trainers, stream, ranks)
    if trainers[0].step_number == 0:
        stream.refill()
        for i, trainer in enumerate(trainers):
            trainer.start(stream.kept[:, i])
    _learn(trainers, stream, settings, folder, after_step, ranks)
    save_checkpoint(folder, trainers, stream, ranks)
    return [trainer.sae(lm, site) for trainer, site in zip(trainers, settings.site, strict=True)]


def _learn(
    trainers: list[Trainer],
    stream: ActivationStream,
    settings: SAESettings,
    folder: Path,
    after_step: Callable[[Trainer], None] | None,
    ranks: Ranks,
) -> None:
    lead, batches = trainers[0], stream.through(settings.batch // ranks.size)
    saved = shown = begun = time.monotonic()
    first = unseen = lead.step_number
    with bar("training", lead.steps, lead.step_number, quiet=not ranks.first) as progress:
        while True:
            x = next(batches, None)
            due = time.monotonic() - saved > settings.checkpoint_every
            # A process whose text is used up goes on with nothing, until the others are done too.
            going, due = ranks.agree(x is not None, due and ranks.first)
            if not going:
                break
            x = stream.kept[:0] if x is None else x
            figures = [trainer.step(x[:, i]) for i, trainer in enumerate(trainers)]
            if after_step is not None:
                after_step(lead)
            now = time.monotonic()
            if now - shown > SHOWN_EVERY or lead.step_number == lead.steps:
                rate = (lead.step_number - first) * settings.batch / (now - begun)
                for trainer in trainers:
                    trainer.check()
                seen = "  ".join(f"FVU {float(f.fvu):.3f}  dead {100 * float(f.dead):.1f} %" for f in figures)
                progress.step(lead.step_number - unseen, figures=f"{seen}  {rate:,.0f} tokens/s")
                shown, unseen = now, lead.step_number
            if due:
                save_checkpoint(folder, trainers, stream, ranks)
                saved = time.monotonic()
        progress.step(lead.step_number - unseen)
