"""Features read on prompts: what a gate would see, for many prompts at once."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from demur.activations.harvest import read_in_passes
from demur.files import replacing
from demur.models.chat import Role, tokens_and_roles
from demur.models.load import LanguageModel
from demur.records import Message
from demur.sae.sae import SAE
from demur.steering.session import NEVER, TAIL, begins_last_turn

POOL = {"max": lambda f: f.amax(0), "mean": lambda f: f.mean(0), "last": lambda f: f[-1]}


@dataclass(frozen=True)
class Streams:
    """The stream at one site on every token that a gate reads of some prompts, one prompt after the other."""

    x: Float[Tensor, "tokens d_model"]
    starts: Int[Tensor, " prompts_and_1"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def packed(self, rows: Sequence[int]) -> tuple[Float[Tensor, "tokens d_model"], Int[Tensor, " tokens"]]:
        """The tokens of some prompts, one after the other, and which of `rows` each is of, by its place."""
        pieces = [self.x[self.starts[i] : self.starts[i + 1]] for i in rows]
        counts = torch.tensor([len(p) for p in pieces])
        return torch.cat(pieces).float(), torch.repeat_interleave(torch.arange(len(pieces)), counts)

    def pooled(self, how: str) -> Float[Tensor, "prompts d_model"]:
        """Each prompt's mean over tokens, or its last one."""
        ends = self.starts[1:]
        if how == "last":
            return self.x[ends - 1].float()
        row = torch.repeat_interleave(torch.arange(len(self)), self.starts.diff())
        sums = torch.zeros(len(self), self.x.shape[1])
        for part, of in zip(self.x.split(65_536), row.split(65_536), strict=True):
            sums.index_add_(0, of, part.float())
        return sums / self.starts.diff()[:, None]


def read_prompts(
    lm: LanguageModel,
    sae: SAE,
    conversations: Sequence[Sequence[Message]],
    pooling: Sequence[str],
    batch: int = 32,
    residual: Sequence[str] = (),
) -> dict[str, Float[Tensor, "prompts width"]]:
    """Every feature's activation on every prompt, pooled as `pooling` says (max, mean, last), in the SAE's units.

    Reads the tokens that a gate reads: the conversation's own and the last of the template's. `residual` names ways to
    pool the stream itself, in the same pass, which are found under "residual mean" and the like.
    """
    return read_prompts_by(lm, [sae], conversations, pooling, batch, residual)[0]


def read_prompts_by(
    lm: LanguageModel,
    saes: Sequence[SAE],
    conversations: Sequence[Sequence[Message]],
    pooling: Sequence[str],
    batch: int = 32,
    residual: Sequence[str] = (),
) -> list[dict[str, Float[Tensor, "prompts width"]]]:
    """The same by several SAEs, at one site or at several, in one pass of the model over the prompts."""
    rows = [_read_by_a_gate(lm, c) for c in conversations]
    return _pooled(lm, saes, rows, pooling, batch, residual, "reading prompts")


def read_streams(
    lm: LanguageModel, site: str, conversations: Sequence[Sequence[Message]], batch: int = 32, kept: Path | None = None
) -> Streams:
    """The stream itself on every token that a gate reads, in bfloat16, which takes half the memory.

    With a file `kept` they are written there, and read from there if it has those of the same model, site and prompts.
    """
    rows = [_read_by_a_gate(lm, c) for c in conversations]
    of = {"of": hashlib.sha256(json.dumps([lm.hash, site, rows]).encode()).hexdigest()}
    if kept is not None and kept.is_file():
        with suppress(SafetensorError), safe_open(kept, "pt") as file:
            if file.metadata() == of:
                return Streams(file.get_tensor("x"), file.get_tensor("starts"))
    counts = torch.tensor([sum(own) for _, own in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    x = torch.empty(int(starts[-1]), lm.d_model, dtype=torch.bfloat16)
    for group, hidden, read_here in _passes(lm, [site], rows, batch, "reading prompts"):
        for i, tokens in zip(group, hidden[site][read_here].split([int(counts[i]) for i in group]), strict=True):
            x[starts[i] : starts[i + 1]] = tokens
    if kept is not None:
        with replacing(kept) as tmp:
            save_file({"x": x, "starts": starts}, tmp, of)
    return Streams(x, starts)


def with_last_turns(
    lm: LanguageModel, streams: Streams, conversations: Sequence[Sequence[Message]]
) -> tuple[Streams, list[int]]:
    """The streams and, behind them, the last turn of each conversation that has several, as a gate reads it by itself; and
    which conversations those are."""
    of, counts = [], []
    for i, conversation in enumerate(conversations):
        if len(conversation) == 1:
            continue
        roles = torch.tensor(tokens_and_roles(lm, conversation)[1])[None]
        user, said = roles == Role.USER, (roles == Role.USER) | (roles == Role.ASSISTANT)
        if (begins := int(begins_last_turn(user, said))) != NEVER:
            of.append(i)
            counts.append(int(_with_tail(said[0])[begins:].sum()))
    if not of:
        return streams, of
    tails = [streams.x[streams.starts[i + 1] - n : streams.starts[i + 1]] for i, n in zip(of, counts, strict=True)]
    starts = torch.cat([streams.starts, streams.starts[-1] + torch.tensor(counts).cumsum(0)])
    return Streams(torch.cat([streams.x, *tails]), starts), of


def _read_by_a_gate(lm: LanguageModel, conversation: Sequence[Message]) -> tuple[list[int], list[bool]]:
    # A conversation's token ids, and which of them a gate reads: its own, and the last of the template's.
    ids, roles = tokens_and_roles(lm, conversation)
    own = torch.tensor([role in (Role.USER, Role.ASSISTANT) for role in roles])
    return ids, _with_tail(own).tolist()


def _with_tail(own: Bool[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    own = own.clone()
    own[-TAIL:] = True
    return own


def read_said(
    lm: LanguageModel,
    sae: SAE,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[list[int]],
    pooling: Sequence[str],
    batch: int = 32,
    residual: Sequence[str] = (),
    late: bool = False,
) -> dict[str, Float[Tensor, "replies width"]]:
    """The same on replies (token ids, at least one each): the tokens from which the words of the reply are written.

    With `late`, the reply's own tokens, as a gate on the reply reads them: without the prompt's last, with the reply's.
    """
    rows = []
    for conversation, reply in zip(conversations, replies, strict=True):
        ids = tokens_and_roles(lm, conversation)[0]
        before = len(ids) if late else len(ids) - 1
        rows.append(((ids + reply)[: before + len(reply)], [False] * before + [True] * len(reply)))
    return _pooled(lm, [sae], rows, pooling, batch, residual, "reading replies")[0]


def _pooled(
    lm: LanguageModel,
    saes: Sequence[SAE],
    rows: Sequence[tuple[list[int], list[bool]]],
    pooling: Sequence[str],
    batch: int,
    residual: Sequence[str],
    what: str,
) -> list[dict[str, Tensor]]:
    # Of each SAE, its pools. Rows of token ids and whether each token is read.
    pools = [{p: torch.zeros(len(rows), sae.config.d_sae) for p in pooling} for sae in saes]
    raw = [{p: torch.zeros(len(rows), sae.config.d_model) for p in residual} for sae in saes]
    sites = list(dict.fromkeys(sae.config.site for sae in saes))
    for group, hidden, read_here in _passes(lm, sites, rows, batch, what):
        counts = read_here.sum(1).tolist()
        for sae, of_features, of_stream in zip(saes, pools, raw, strict=True):
            x = hidden[sae.config.site][read_here]
            for values, into in ((sae.encode(x), of_features), (x, of_stream)):
                for i, tokens in zip(group, values.split(counts), strict=True):
                    for p in into:
                        into[p][i] = POOL[p](tokens)
    return [f | {f"residual {p}": values for p, values in x.items()} for f, x in zip(pools, raw, strict=True)]


def _passes(
    lm: LanguageModel, sites: list[str], rows: Sequence[tuple[list[int], list[bool]]], batch: int, what: str
) -> Iterator[tuple[list[int], Mapping[str, Float[Tensor, "rows tokens d_model"]], Bool[Tensor, "rows tokens"]]]:
    # Rows of like length together: which they are, the stream at each site, and which tokens are read.
    for group, hidden in read_in_passes(lm, sites, [ids for ids, _ in rows], batch, what):
        stream = hidden[sites[0]]
        read_here = [rows[i][1] + [False] * (stream.shape[1] - len(rows[i][1])) for i in group]
        yield group, hidden, torch.tensor(read_here, device=stream.device)
