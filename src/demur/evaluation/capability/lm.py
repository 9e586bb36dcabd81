"""A steered model as lm-eval's model: its three calls, with the gate at work in each and its decisions counted.

Tokenisation, batches and padding are those of lm-eval's `hf` model (v0.4.13), so that under an empty policy every
figure is that model's to the last digit. A gate reads the context only, and edits begin at the context's last token, as
if the continuation were being generated. A `lean` model gives the same figures to rounding, in less time: what choices
share is run once, and replies that have ended leave the batch.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models import huggingface
from lm_eval.models.utils import chunks, normalize_gen_kwargs, postprocess_generated_text
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from demur.errors import PolicyError, SettingsError
from demur.evaluation.capability.packing import Row, batches, columns, packed, packs
from demur.models.chat import Encoded, Role, bare_roles, label, pad
from demur.models.generation import end_tokens
from demur.models.load import LanguageModel, ModelSettings, load
from demur.records import Message, Policy, first_problem
from demur.sae.sae import SAE
from demur.steering.generate import decide_rows
from demur.steering.policies import find_policy, load_saes
from demur.steering.session import check, steer

HFLM: Any = huggingface.HFLM  # whose decorator tells a type checker too little
LOGLIKELIHOOD, ROLLING, GENERATE = "loglikelihood", "loglikelihood_rolling", "generate_until"
FIRST_ROUND = 16
"""New tokens after which a lean model first looks which replies have ended."""
HEAD_ROWS = 64
"""On a CPU the head is applied to the scored columns only, but to no fewer positions than this: for a handful, BLAS
takes another kernel, whose last bit differs."""


@dataclass(frozen=True)
class Decision:
    """What a policy decided on one context."""

    gate: float | None
    open: bool


class SteeredLM(HFLM):
    """`lm_eval --model demur --model_args policy=gated,model=embedded`; arguments of `hf` that concern neither loading
    nor several devices (`max_length`, `add_bos_token`, `softmax_dtype` …) are its own.

    Raises:
        ModelError, PolicyError, SAEError, FileError: a model, policy or SAE that cannot be had or do not fit.
    """

    def __init__(
        self,
        policy: str | Policy = "none",
        model: str | LanguageModel = "embedded",
        sae: str | Path = "",
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        saes: Mapping[str, SAE] | None = None,
        lean: bool = False,
        plain: dict[str, Any] | None = None,
        quiet: bool = False,
        **others: Any,
    ) -> None:
        self.policy = find_policy(policy) if isinstance(policy, str) else policy
        lm = self.lm = model if isinstance(model, LanguageModel) else load(_settings(model, dtype, device))
        self.saes = load_saes(lm, [self.policy], [Path(sae)] if sae else ()) if saes is None else saes
        check(self.policy, lm, self.saes)
        super().__init__(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, **others)
        self.plain = {} if plain is None else plain
        """What the plain model answered in this run, by `key`; shared by the models of one run."""
        self.lean, self.quiet = lean, quiet
        self.packs: bool | None = None
        """Whether the model can score packed rows: not known before the first, and not every model can."""
        self.asked: Counter[str] = Counter()
        """Requests of each kind of call."""
        self.decided: Counter[str] = Counter()
        """Of these, requests on whose context the gate decided."""
        self.decisions: dict[tuple[str, str], Decision] = {}
        """By kind of call and context."""
        self.talks: dict[str, tuple[Message, ...]] = {}
        """The conversation behind each context that was put into the chat template."""
        self.contexts: tuple[Sequence[str], Tensor] = ((), torch.empty(0))
        """Contexts of the batch that is about to be generated from, and its attention mask."""

    # The three calls.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, and whether greedy decoding says it."""
        quiet = disable_tqdm or self.quiet
        return self._answer(LOGLIKELIHOOD, requests, lambda r: super(SteeredLM, self).loglikelihood(r, quiet))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, of which a gate has read nothing."""
        quiet = disable_tqdm or self.quiet
        return self._answer(ROLLING, requests, lambda r: super(SteeredLM, self).loglikelihood_rolling(r, quiet))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The reply to each context, up to the first stop string."""
        quiet = disable_tqdm or self.quiet
        return self._answer(GENERATE, requests, lambda r: super(SteeredLM, self).generate_until(r, quiet))

    def _answer(self, kind: str, requests: list[Instance], compute: Callable[[list[Instance]], list]) -> list:
        if self.policy.system and kind != ROLLING:
            requests = [replace(r, arguments=(self._asked(r.args[0]), *r.args[1:])) for r in requests]
        contexts = ["" if kind == ROLLING else r.args[0] for r in requests]
        keys = [key(kind, r.args) for r in requests]
        known: dict[int, Any] = {}
        # Behind a shut gate the model is the plain one to the bit (tests/laws): where this run has the plain model's
        # answer already, only the gate is read. Nor does the model run where a policy gives a fixed reply.
        late = self.policy.gate is not None and self.policy.gate.continuation is not None and kind == GENERATE
        reused = self.policy.gate is not None and not late and any(k in self.plain for k in keys)
        if self.policy.canned or reused:
            self._decide(kind, list(dict.fromkeys(contexts)))
            for i, context in enumerate(contexts):
                if self.decisions[kind, context].open and self.policy.canned:
                    known[i] = _fixed(kind, requests[i], self.policy.canned)
                elif reused and not self.decisions[kind, context].open and keys[i] in self.plain:
                    known[i] = self.plain[keys[i]]
        left = [i for i in range(len(requests)) if i not in known]
        known |= dict(zip(left, compute([requests[i] for i in left]) if left else [], strict=True))
        if self.policy.is_plain:
            self.plain |= {k: known[i] for i, k in enumerate(keys) if not _sampled(kind, requests[i])}
        self.asked[kind] += len(requests)
        self.decided[kind] += sum((kind, c) in self.decisions for c in contexts) if self.policy.gate else 0
        return [known[i] for i in range(len(requests))]

    def decision(self, kind: str, context: str) -> Decision:
        """What was decided on a context that was asked in such a call."""
        always = Decision(None, self.policy.gate is None and self.policy.acts)
        return self.decisions.get((kind, context if kind == ROLLING else self._asked(context)), always)

    def _decide(self, kind: str, contexts: list[str]) -> None:
        rows = [self._labelled(c) for c in contexts]
        rows = [(ids[-self.max_length :], roles[-self.max_length :]) for ids, roles in rows]
        size = self.batch_size if isinstance(self.batch_size, int) else 1
        found = decide_rows(self.lm, self.saes, rows, self.policy, min(size, 16))
        for context, seen in zip(contexts, found, strict=True):
            self.decisions[kind, context] = Decision(seen["gate"], seen["open"])

    def _steered(self, kind: str, contexts: Sequence[str], prompts: Sequence[tuple[list[int], list[int]]], side: Any):
        return self._steered_as(kind, contexts, pad(self.lm, prompts, side))

    @contextmanager
    def _steered_as(self, kind: str, contexts: Sequence[str], prompts: Encoded) -> Iterator[None]:
        # Within the block the batch is steered; after it, what the gates decided is known.
        if self.policy.gate is None and not self.policy.interventions:
            yield
            return
        # What is scored was not written by the model: a gate on the reply has nothing to say of it.
        policy = self.policy if kind == GENERATE else self.policy.prompt_only
        with steer(self.lm, self.saes, [policy] * len(contexts), prompts) as session:
            yield
        for row, context in enumerate(contexts):
            seen = session.report(row, 0)
            self.decisions.setdefault((kind, context), Decision(seen["gate"], seen["open"]))

    # Scoring: in hf's order and batches, with the head and the softmax at the scored positions only.

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        rows = self._rows(requests)
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or self.quiet, desc="scoring") as progress:
            for row, logits in self._row_logits(rows, requests, override_bs):
                log_probs = logits.log_softmax(-1, dtype=self.softmax_dtype)[None]
                greedy = log_probs.argmax(-1)
                for i in row.requests:
                    text, _, continuation = requests[i]
                    wanted = torch.tensor(continuation, device=log_probs.device)[None]
                    chosen = log_probs.gather(2, wanted[..., None])[..., 0]
                    answers[i] = float(chosen.sum()), bool((greedy == wanted).all())
                    if text is not None:
                        self.cache_hook.add_partial(LOGLIKELIHOOD, text, answers[i])
                progress.update(len(row.requests))
        return [answers[i] for i in range(len(requests))]

    def _rows(self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]]) -> list[Row]:
        # Requests that differ in the last token alone share a row; hf does that too, but where two contexts end at
        # different places in the same text, a gate reads and edits begin at different places.
        rows: dict[Any, Row] = {}
        for i, (text, context, continuation) in enumerate(requests):
            kind, name = (ROLLING, "") if text is None else (LOGLIKELIHOOD, text[0])
            prompt = self._prompt(name, context, continuation)
            shared = (tuple(context), tuple(continuation[:-1]), len(prompt[0]))
            row = rows.setdefault(shared, Row(kind, name, prompt, context + continuation, len(continuation), []))
            row.requests.append(i)
        return sorted(rows.values(), key=lambda row: (-len(row.tokens), row.tokens))

    def _row_logits(
        self, rows: list[Row], requests: Sequence[Any], override_bs: int | None
    ) -> Iterator[tuple[Row, Tensor]]:
        if self.lean and self.packs is not False and isinstance(self.batch_size, int):
            window = getattr(self.lm.model.config.get_text_config(), "sliding_window", None)
            limit = min(self.max_length, window or self.max_length)
            short = [row for row in rows if len(row.tokens) <= limit]
            together = packs(short)
            if self.packs is None and together:
                self.packs = self._can_pack(together[-2:])
            if self.packs:
                for batch in batches(together, self.batch_size, self.device.type):
                    yield from self._packed_logits(batch)
                rows = [row for row in rows if len(row.tokens) > limit]
        for batch in self._batches(rows, requests, override_bs):
            yield from zip(batch, self._logits(batch), strict=True)

    def _batches(self, rows: list[Row], requests: Sequence[Any], override_bs: int | None) -> Iterator[list[Row]]:
        if self.batch_size != "auto":
            yield from chunks(rows, n=int(self.batch_size))
        elif override_bs:
            yield from chunks(rows, n=override_bs)
        else:
            self.batch_sizes = {}
            ordered = [requests[row.requests[0]] for row in rows]
            yield from chunks(rows, fn=lambda i, _: self._batch_scheduler(i, ordered))

    def _logits(self, rows: list[Row]) -> list[Tensor]:
        """For each row the logits, `[tokens, vocab]`, that predict its continuation."""
        # Too long a row loses its beginning; the last token of a row predicts nothing that is scored.
        fed = [row.tokens[-(self.max_length + 1) : -1] for row in rows]
        width = max(len(f) for f in fed)
        ids = torch.tensor([f + [0] * (width - len(f)) for f in fed], device=self.device)
        scored = [list(range(len(f) - row.scored, len(f))) for f, row in zip(fed, rows, strict=True)]
        lost = [max(0, len(row.tokens) - self.max_length - 1) for row in rows]
        prompts = [(ids[n:], roles[n:]) for n, (ids, roles) in zip(lost, (row.prompt for row in rows), strict=True)]
        with self._steered(rows[0].kind, [row.context for row in rows], prompts, "right"):
            return [found[0] for found in self._at([[s] for s in scored], ids)]

    def _packed_logits(self, batch: list[list[Row]]) -> list[tuple[Row, Tensor]]:
        firsts = [pack[0] for pack in batch]
        ids, mask, positions = packed(batch, next(self.lm.model.parameters()))
        with self._steered(firsts[0].kind, [row.context for row in firsts], [row.prompt for row in firsts], "right"):
            found = self._at([columns(pack) for pack in batch], ids, mask, positions)
        return [
            (row, logits)
            for pack, made in zip(batch, found, strict=True)
            for row, logits in zip(pack, made, strict=True)
        ]

    def _at(
        self, scored: list[list[list[int]]], ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> list[list[Tensor]]:
        # Logits at the columns named, for each part of each row; where it saves much, the head is run on no others.
        width = ids.shape[1]
        wanted = {column for row in scored for part in row for column in part}
        if self.device.type != "cpu" or len(wanted) * len(scored) < HEAD_ROWS:
            wanted = set(range(width))
        kept = torch.tensor(sorted(wanted), device=self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.mixed_precision_dtype, self.mixed_precision_dtype is not None),
        ):
            logits = self.lm.logits(ids, mask, positions, columns=kept)
        place = {int(column): at for at, column in enumerate(kept)}
        return [[logits[i, [place[c] for c in part]] for part in row] for i, row in enumerate(scored)]

    def _can_pack(self, batch: list[list[Row]]) -> bool:
        """Whether packed rows come out as rows apart do: a model may refuse such a mask, or heed no positions."""
        try:
            together = torch.cat([logits for _, logits in self._packed_logits(batch)])
        except Exception:  # whatever a model raises that cannot take a mask of four axes
            return False
        apart = torch.cat(self._logits([row for pack in batch for row in pack]))
        return bool((together - apart).norm() <= torch.finfo(apart.dtype).eps ** 0.5 * apart.norm())

    # Generating: hf's own loop, steered.

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As hf's; remembers whose turn it is."""
        ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        self.contexts = strings, mask
        return ids, mask

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        if not self.policy.is_plain and kwargs.get("num_beams", 1) > 1:
            raise PolicyError("beam search copies rows, so a policy cannot follow them; generate without num_beams.")
        strings, mask = self.contexts
        prompts = []
        for string, ids, real in zip(strings, context.tolist(), mask.bool().tolist(), strict=True):
            given = [token for token, r in zip(ids, real, strict=True) if r]
            roles = self._labelled(string)[1][-len(given) :]
            prompts.append((given, [int(Role.TEMPLATE)] * (len(given) - len(roles)) + roles))
        if self.lean and not kwargs.get("do_sample"):
            return self._retiring(prompts, context, max_length, stop, kwargs)
        with self._steered(GENERATE, strings, prompts, "left"):
            return super()._model_generate(context, max_length, stop, **kwargs)

    def _retiring(
        self, prompts: list[tuple[list[int], list[int]]], context: Tensor, max_length: int, stop: list[str], how: dict
    ) -> Tensor:
        # In rounds, each three times as long as all before; what has ended in one is not in the next. What a row has
        # said so far is fed behind its prompt, and is no part of it.
        limit, ends = max_length - context.shape[1], set(end_tokens(self.lm))
        said: list[list[int]] = [[] for _ in prompts]
        left, done = list(range(len(prompts))), 0
        while left and done < limit:
            more = min(limit - done, max(FIRST_ROUND, 3 * done))
            rows = [(prompts[i][0] + said[i], prompts[i][1] + [int(Role.PAD)] * len(said[i])) for i in left]
            fed = pad(self.lm, rows)
            real = pad(self.lm, [(ids, [1] * len(ids)) for ids, _ in rows]).mask
            with self._steered_as(GENERATE, [self.contexts[0][i] for i in left], fed):
                out = super()._model_generate(fed.ids, fed.ids.shape[1] + more, stop, **how | {"attention_mask": real})
            for i, tokens in zip(left, out[:, fed.ids.shape[1] :].tolist(), strict=True):
                said[i] += tokens
            done += more
            left = [i for i in left if not (ends & set(said[i]) or any(s in self.tok_decode(said[i]) for s in stop))]
        blank = self.tokenizer.pad_token_id
        replies = [s + [blank] * (limit - len(s)) for s in said]
        return torch.cat([context, torch.tensor(replies, device=context.device)], dim=1)

    # Whose is which token.

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As hf's, with the policy's system prompt; remembers who said what."""
        talk = self.policy.conversation([Message.model_validate(m) for m in chat_history])
        text = super().apply_chat_template([m.model_dump() for m in talk], add_generation_prompt)
        self.talks[text] = talk
        return text

    def _asked(self, context: str) -> str:
        # A raw context has no place for a system prompt but before it. (A rolled text has no context to put it in.)
        if not self.policy.system or context in self.talks:
            return context
        text = f"{self.policy.system}\n\n{context}"
        messages = (Message(role="system", content=self.policy.system), Message(role="user", content=context))
        self.talks[text] = messages if context else messages[:1]
        return text

    def _labelled(self, context: str, ending: int = 0) -> tuple[list[int], list[int]]:
        """Token ids of a context (without its last `ending` characters) as hf encodes it, and the `Role` of each.

        In a context that went through the chat template, roles are those of the conversation; any other is the user's
        but for special tokens; an empty one is the prefix token, which is nobody's.
        """
        text = context[: len(context) - ending]
        if not text:
            return [self.prefix_token_id], [int(Role.TEMPLATE)]
        ids = self.tok_encode(text)
        coded, roles = label(self.lm, text, self.talks.get(context), special_tokens=False)
        # What the tokenizer adds by itself, such as BOS, stands before or behind.
        before = next((i for i in range(len(ids) - len(coded) + 1) if ids[i : i + len(coded)] == coded), None)
        if before is None:
            return ids, bare_roles(self.lm, ids)
        after = len(ids) - len(coded) - before
        return ids, [int(Role.TEMPLATE)] * before + roles + [int(Role.TEMPLATE)] * after

    def _prompt(self, context: str, encoded: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        # hf moves white space at the end of a context, a template's last newline for one, into the continuation. It is
        # scored there; the gate still reads it, wherever it is a token of its own, as it does in generating.
        if not context:
            return encoded, [int(Role.TEMPLATE)] * len(encoded)
        ids, roles = self._labelled(context)
        if (encoded + continuation)[: len(ids)] == ids and len(ids) < len(encoded) + len(continuation):
            return ids, roles
        ids, roles = self._labelled(context, ending=len(context) - len(context.rstrip()))
        return ids[: len(encoded)], roles[: len(encoded)]

    def get_model_info(self) -> dict:
        """As hf's, and the policy."""
        return super().get_model_info() | {"demur_policy": self.policy.name, "demur_policy_hash": self.policy.hash}


register_model("demur")(SteeredLM)


def key(kind: str, args: Sequence[Any]) -> str:
    """What tells a request from all others of a run: kind of call, texts, how to generate."""
    return json.dumps([kind, *args], sort_keys=True, ensure_ascii=False)


def _settings(model: str, dtype: str, device: str | None) -> ModelSettings:
    # lm-eval's command asks for cuda:0 unless told otherwise, and its hf takes the CPU where there is none.
    here = "auto" if device is None or (device.startswith("cuda") and not torch.cuda.is_available()) else device
    try:
        return ModelSettings.model_validate({"model": model, "dtype": dtype, "device": here})
    except ValidationError as error:
        raise SettingsError(f"--model_args: {first_problem(error, ModelSettings)}.") from error


def _fixed(kind: str, request: Instance, reply: str) -> Any:
    # Of no continuation does a model that says something else give a likelihood.
    if kind == GENERATE:
        how: Any = normalize_gen_kwargs(request.arguments[1])
        return postprocess_generated_text(reply, how["until"], None)
    return -math.inf if kind == ROLLING else (-math.inf, False)


def _sampled(kind: str, request: Instance) -> bool:
    return kind == GENERATE and bool(request.arguments[1].get("do_sample"))
