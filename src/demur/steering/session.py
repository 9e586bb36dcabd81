"""One steered call: which rows have which policies, what the gates saw, which positions were edited.

The core is flat, `edit(site, x[token, d_model], row[token], position[token])`; `steer` is its adapter to padded
batches. Whatever a row needs to know lives in the session and dies with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from demur.errors import PolicyError
from demur.models.chat import Encoded, Role
from demur.models.guard import guard_of
from demur.models.hooks import at_blocks
from demur.models.load import LanguageModel
from demur.models.sites import Site
from demur.records import AttentionSensor, FeatureSensor, Fired, Intervention, Policy, Positions
from demur.sae.edit import Edits, edit
from demur.sae.sae import SAE
from demur.steering.gates import GateState, Late, wanted_features, widened
from demur.steering.guards import asked_of
from demur.steering.pushes import Pushes
from demur.steering.states import Seen, wide
from demur.steering.words import heard


@dataclass(frozen=True)
class Action:
    """One intervention as tensors."""

    how: Intervention
    edits: Edits
    pushes: Pushes
    off: Tensor | None
    """Basis `[rank, d_model]` outside of which the change is made."""

    @classmethod
    def of(cls, how: Intervention, policy: Policy, rows: int, like: Tensor) -> "Action":
        """An intervention of a policy, for a batch of so many rows."""
        off = torch.as_tensor(policy.vector(how.off)).to(like) if how.off else None
        return cls(how, Edits.of(how.edits, like), Pushes(policy, how.pushes, rows, like), off)


@dataclass(frozen=True, eq=False)
class Plan:
    """A policy, the rows that have it, and its parts as tensors."""

    policy: Policy
    hash: str
    rows: Bool[Tensor, " batch"]
    gate: GateState | None
    actions: tuple[Action, ...]

    def forget(self, rows: Int[Tensor, " n"]) -> None:
        """Makes rows ready for other prompts."""
        if self.gate is not None:
            self.gate.forget(rows)
        for action in self.actions:
            action.pushes.forget(rows)


class Session:
    """The state of one steered call; see `steer`. A server's session has rows that come and go: `admit`, `leave`."""

    def __init__(
        self,
        lm: LanguageModel,
        saes: Mapping[str, SAE],
        policies: Sequence[Policy],
        prompts: Encoded | None,
        rows: int | None = None,
        words: bool = False,
    ) -> None:
        """Rows with a policy and a prompt each; or, with `rows` and no prompts, so many that are free.

        With `words` (of rows that do not come and go), what gates read of the prompts is kept, and `report` says word by
        word what they thought.
        """
        self.like = next(lm.model.parameters())
        self.rows = len(policies) if rows is None else rows
        self.lm, self.saes, self.precision = lm, saes, wide(self.like)

        def blank(*shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
            return torch.zeros(*shape, device=self.like.device, dtype=dtype)

        self.length = blank(self.rows, dtype=torch.long)
        """Prompt tokens in each row."""
        self.ids = blank(self.rows, 0, dtype=torch.long)
        """Prompt tokens by position."""
        self.readable, self.user = blank(self.rows, 0), blank(self.rows, 0)
        self.last_turn = torch.full((self.rows,), NEVER, device=self.like.device)
        """Where the last of several turns begins; of rows with one turn, behind all there is."""
        self.worded = blank(self.rows)
        """Rows in which somebody said something; of the others a gate reads nothing, not even the template's tail."""
        self.edited = blank(self.rows, 0)
        """Which positions were edited."""
        self.features: dict[str, Tensor] = {}
        """Features that some gate reads, by site."""
        self.read: dict[str, list[Seen]] | None = {} if words else None
        """By site, the tokens of prompts that gates read."""
        self.plans: list[Plan] = []
        if prompts is not None:
            self.admit(range(self.rows), policies, prompts)

    def admit(self, rows: Sequence[int], policies: Sequence[Policy], prompts: Encoded) -> None:
        """Gives free rows a policy and a prompt each."""
        at = torch.tensor(list(rows), device=self.like.device)
        self.leave(rows)
        width = prompts.ids.shape[1]
        self.length[at] = prompts.mask.sum(1)
        self.ids = _filled(self.ids, at, _by_position(prompts, prompts.ids))
        self.readable = _filled(self.readable, at, _by_position(prompts, _of(prompts, Role.USER, Role.ASSISTANT)))
        self.user = _filled(self.user, at, _by_position(prompts, _of(prompts, Role.USER)))
        self.last_turn[at] = begins_last_turn(self.user[at], self.readable[at])
        self.worded[at] = self.readable[at].any(1)
        self.edited = widened(self.edited, width)
        self.edited[at] = False
        hashes = [p.hash for p in policies]
        for hash_, policy in {h: p for h, p in zip(hashes, policies, strict=True)}.items():
            plan = next((p for p in self.plans if p.hash == hash_), None) or self._plan(policy, hash_)
            mine = at[torch.tensor([h == hash_ for h in hashes], device=at.device)]
            plan.rows[mine] = True
            plan.forget(mine)
            if plan.gate is not None and plan.gate.gate.guards:
                places = [i for i, h in enumerate(hashes) if h == hash_]
                self._ask_guards(plan.gate, mine.tolist(), prompts, places)

    def leave(self, rows: Sequence[int]) -> None:
        """Frees rows; policies that no row has any more are forgotten, but for the last few."""
        at = torch.tensor(list(rows), device=self.like.device)
        for plan in self.plans:
            plan.rows[at] = False
        unused = [p for p in self.plans if not p.rows.any()]
        for plan in unused[:-KEPT]:
            self.plans.remove(plan)

    def _ask_guards(self, gate: GateState, rows: list[int], prompts: Encoded, places: list[int]) -> None:
        # Once, as the rows come in: a guard has its own tokenizer and sees nothing of the steered model.
        turns = [int(self.last_turn[row]) for row in rows]
        late = [i for i, since in enumerate(turns) if since != NEVER] if gate.reads_last_turns else []
        for sensor in gate.gate.guards:
            gate.take(sensor, rows, asked_of(self.lm, sensor, prompts, places, [0] * len(rows)))
            if late:
                alone = asked_of(self.lm, sensor, prompts, [places[i] for i in late], [turns[i] for i in late])
                gate.take(sensor, [rows[i] for i in late], alone, of_last_turn=True)

    def _plan(self, policy: Policy, hash_: str) -> Plan:
        if policy.gate is not None:
            self.features = wanted_features([policy.gate], self.like, self.features)
        made = Plan(
            policy=policy,
            hash=hash_,
            rows=torch.zeros(self.rows, device=self.like.device, dtype=torch.bool),
            gate=GateState(policy, policy.gate, self.features, self.rows, self.like) if policy.gate else None,
            actions=tuple(Action.of(i, policy, self.rows, self.like) for i in policy.interventions),
        )
        self.plans.append(made)
        return made

    @property
    def sites(self) -> list[str]:
        """Sites that some plan reads or edits."""
        return sorted({*self.features, *(a.how.site for plan in self.plans for a in plan.actions)})

    def edit(
        self,
        site: str,
        x: Float[Tensor, "tokens d_model"],
        row: Int[Tensor, " tokens"],
        position: Int[Tensor, " tokens"],
    ) -> Tensor | None:
        """The flat core. Tokens come in order of position within each row, each once; None means nothing changed."""
        if site in self.features:
            self._sense(site, x, row, position)
        new = x
        for plan in self.plans:
            for action in plan.actions:
                if action.how.site != site:
                    continue
                mine = plan.rows[row]
                action.pushes.see(new, row, mine & (position == self.length[row] - 1))
                open_, since = self._open(plan, row, position)
                here = mine & open_ & self._positions(action.how.positions, row, position, since)
                if not here.any():
                    continue
                dose = self._dose(plan, action.how, row[here], position[here] - since[here])
                if dose is not None and not dose.all():
                    # Where it has fallen to nothing, nothing is edited.
                    here[here.clone()] = dose != 0
                    dose = dose[dose != 0]
                    if not len(dose):
                        continue
                # A clone, so that rows nobody edits stay bit-equal and the model's own tensor stays as it is.
                new = new.clone() if new is x else new
                new[here] = self._changed(action, new[here], row[here], dose)
                self.edited = widened(self.edited, int(position.max()) + 1)
                self.edited[row[here], position[here]] = True
        return None if new is x else new

    def is_idle(self, site: str) -> bool:
        """Whether at this site nothing is left to do on any reply, whatever its tokens."""
        for plan in self.plans:
            if plan.gate is not None and plan.gate.late is not None:
                return False
            acts = plan.gate is None or bool((plan.gate.open() & plan.rows).any())
            if acts and any(a.how.site == site and a.how.positions != "prompt" for a in plan.actions):
                return False
        return True

    def _sense(self, site: str, x: Tensor, row: Tensor, position: Tensor) -> None:
        in_prompt = position < self.length[row]
        for of_reply in (False, True):
            readers = [
                (plan, plan.gate.late if of_reply else plan.gate)
                for plan in self.plans
                if plan.gate is not None and plan.gate.reads(site, of_reply)
            ]
            tokens = ~in_prompt if of_reply else in_prompt
            # Asked first, since most passes are of one token of a reply, with no gate that reads it.
            if not readers or not tokens.any():
                continue
            if not of_reply:
                # The tail of the template leads over to the reply, and by then the model has made up its mind.
                tail = self.worded[row] & (position >= self.length[row] - TAIL)
                tokens = tokens & (self.readable[row, position.clamp_max(self.readable.shape[1] - 1)] | tail)
            tokens = tokens & torch.stack([plan.rows for plan, _ in readers]).any(0)[row]
            if not tokens.any():
                continue
            seen = Seen(x[tokens], row[tokens], position[tokens], self.saes.get(site), self.features[site])
            if self.read is not None and not of_reply:
                self.read.setdefault(site, []).append(seen)
            for plan, gate in readers:
                mine = seen.of(plan.rows)
                if not len(mine.row):
                    continue
                if isinstance(gate, Late):
                    gate.update(mine)
                else:
                    assert gate is not None
                    gate.update(site, mine, mine.position >= self.last_turn[mine.row])

    def _open(self, plan: Plan, row: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        # Whether the policy acts at these tokens, and since which position; where it does so from the prompt on, since
        # the last prompt token, which writes the first of the reply.
        first = self.length[row] - 1
        if plan.gate is None:
            return torch.ones_like(row, dtype=torch.bool), first
        from_prompt = plan.gate.open()[row]
        if plan.gate.late is None:
            return from_prompt, first
        late, since = plan.gate.late.at(row, position)
        return from_prompt | late, torch.where(from_prompt, first, since)

    def _positions(self, which: Positions, row: Tensor, position: Tensor, since: Tensor) -> Tensor:
        in_prompt = position < self.length[row]
        if which == "prompt":
            return in_prompt
        reply = position >= self.length[row] - 1
        if which == "reply":
            return reply
        content = self.user if which == "user" else self.readable
        return reply | (in_prompt & content[row, position.clamp_max(content.shape[1] - 1)])

    def _dose(self, plan: Plan, how: Intervention, row: Tensor, age: Tensor) -> Tensor | None:
        # One factor a token; None where it is 1 everywhere, so that nothing is rounded by it.
        dose = plan.gate.dose()[row] if plan.gate is not None else None
        if not how.is_even:
            age = age.clamp_min(0).to(self.precision)
            rise = ((age + 1) / (how.onset + 1)).clamp_max(1)
            fall = (1 - (age - how.hold + 1) / (how.decay + 1)).clamp(0, 1) if how.hold is not None else 1
            dose = rise * fall if dose is None else dose * rise * fall
        return None if dose is None or bool((dose == 1).all()) else dose

    def _changed(self, action: Action, x: Tensor, row: Tensor, dose: Tensor | None) -> Tensor:
        how = action.how
        scale = x.norm(dim=1, keepdim=True) / how.norm if how.norm else None
        new = edit(x, self.saes[how.site], action.edits, how.keep_error, scale) if how.needs_sae else x
        new = action.pushes(new, row, scale)
        if dose is None and action.off is None and how.cap is None:
            return new
        change = new - x
        if action.off is not None:
            change = change - (change @ action.off.T) @ action.off
        if dose is not None:
            change = change * dose[:, None].to(change)
        if how.cap is not None:
            longest = how.cap * x.norm(dim=1, keepdim=True)
            change = change * (longest / change.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
        return x + change

    def is_late(self, row: int) -> bool:
        """Whether the gate on a row's reply is open now."""
        plan = next(p for p in self.plans if p.rows[row])
        return plan.gate is not None and plan.gate.late is not None and bool(plan.gate.late.live[row])

    def report(self, row: int, reply_tokens: int) -> dict:
        """What a transcript says of a row: what the gate thought, positions edited, features that took part.

        The last reply token is never fed back, so positions up to `length + reply_tokens − 2` count.
        """
        plan = next(p for p in self.plans if p.rows[row])
        length = int(self.length[row])
        edited = int(self.edited[row, : length - 1 + reply_tokens].sum())
        seen: dict = {"gate": None, "open": plan.policy.acts, "edited": edited, "fired": ()}
        if plan.gate is not None:
            word = cache(partial(self._word, row))  # many features are strongest on the same few words
            seen |= {
                "gate": float(plan.gate.scores()[row]),
                "open": bool(plan.gate.open()[row]),
                "fired": tuple(
                    f if f.position is None else f.model_copy(update={"token": word(f.position)})
                    for f in plan.gate.fired(row)
                ),
                "hazard": plan.gate.kind(row),
                "last_turn": plan.gate.by_last_turn(row),
            }
            if self.read is not None:
                since = int(self.last_turn[row]) if seen["last_turn"] else 0
                seen["heard"] = heard(plan.gate, row, since, self.read, word)
            if seen["open"]:
                seen["dose"] = float(plan.gate.dose()[row])
            if (late := plan.gate.late) is not None:
                seen |= _late(late, row, length, reply_tokens)
        if edited:
            seen["fired"] += tuple(
                Fired(feature=e.feature, role="actuator", value=e.value, site=i.site)
                for i in plan.policy.interventions
                for e in i.edits
            )
        return seen

    def _word(self, row: int, position: int) -> str:
        # Behind the token before it: some tokenizers leave out the space before what they decode first.
        decode, ids = self.lm.tokenizer.decode, self.ids[row, max(0, position - 1) : position + 1].tolist()
        before, both = decode(ids[:-1]), decode(ids)
        return both.removeprefix(before) if both.startswith(before) else decode(ids[-1:])


def _late(late: Late, row: int, length: int, reply_tokens: int) -> dict:
    trace = [(at - length, score, is_open) for at, score, is_open in late.trace(row) if at - length < reply_tokens - 1]
    opened = [at for at, _, is_open in trace if is_open]
    found: dict = {"trace": tuple(round(score, 4) for _, score, _ in trace)}
    return found | ({"late": opened[0], "open": True} if opened else {})


def begins_last_turn(
    user: Bool[Tensor, "rows positions"], readable: Bool[Tensor, "rows positions"]
) -> Int[Tensor, " rows"]:
    """Where the user's words after the last reply begin; `NEVER` where no reply came before them.

    `readable` are the words of either side. A reply that the user has not answered is begun for the model, and is no turn.
    """
    position = torch.arange(user.shape[1], device=user.device).expand_as(user)
    last = torch.where(user, position, -1).amax(1, keepdim=True)
    said = readable & ~user & (position < last)
    after = torch.where(said, position, -1).amax(1, keepdim=True)
    begins = torch.where(user & (position > after), position, NEVER).amin(1)
    return torch.where(said.any(1), begins, NEVER)


KEPT = 8
"""Policies whose tensors a session keeps though no row has them."""

NEVER = torch.iinfo(torch.long).max
"""A position that no token has."""

TAIL = 1
"""Template tokens at the end of the prompt that a gate reads."""


@contextmanager
def steer(
    lm: LanguageModel, saes: Mapping[str, SAE], policies: Sequence[Policy], prompts: Encoded, words: bool = False
) -> Iterator[Session]:
    """Within the block, the model's passes over this batch are steered: one policy per row.

    The batch is fed from its first column on, each column once - all at once, or in chunks, or token by token with a
    KV cache. What follows a prompt in its row is its reply: columns behind those of the batch, and padding on the
    right. `saes` has the SAE of every site that the policies name. `words` as in `Session`.

    Raises:
        PolicyError: a policy is for another model or SAE, or its gate reads behind its first edit.
        SAEError: a feature is not in its SAE, or the SAE's width is not the model's.
    """
    for policy in {p.hash: p for p in policies}.values():
        check(policy, lm, saes)
    session = Session(lm, saes, policies, prompts, words=words)
    first = prompts.first
    columns_seen = dict.fromkeys(session.sites, 0)

    def handler(site: str):
        def adapt(hidden: Tensor) -> Tensor | None:
            start = columns_seen[site]
            columns_seen[site] = start + hidden.shape[1]
            if start >= prompts.ids.shape[1] and session.is_idle(site):
                return None
            columns = torch.arange(start, start + hidden.shape[1], device=hidden.device)
            position = columns[None, :] - first[:, None]
            real = position >= 0
            row = torch.arange(len(hidden), device=hidden.device)[:, None].expand_as(position)
            new = session.edit(site, hidden[real], row[real], position[real])
            if new is None:
                return None
            out = hidden.clone()
            out[real] = new
            return out

        return adapt

    with at_blocks({lm.block(site): handler(site) for site in session.sites}):
        yield session


def check(policy: Policy, lm: LanguageModel, saes: Mapping[str, SAE]) -> None:
    """Raises PolicyError or SAEError unless the policy can be used with this model and these SAEs."""
    if policy.gate is None and not policy.interventions:
        return  # a system prompt or a canned reply fits every model
    if policy.model_hash != lm.hash:
        raise PolicyError(
            f"policy {policy.name} was made for {policy.model} ({policy.model_hash}), not for {lm.name} ({lm.hash}); "
            "find and calibrate on this model, or give the policy's own with --model."
        )
    if policy.gate is not None:
        for guard in policy.gate.guards:
            guard_of(guard, lm.device)
        first = min((_layer(i.site) for i in policy.interventions), default=len(lm.blocks))
        if policy.gate.sites and _layer(last := policy.gate.sites[-1]) > first:
            raise PolicyError(f"policy {policy.name} reads at {last}, behind its first edit; read earlier.")
    for site, name, shape in _vectors_of(policy, lm.d_model):
        lm.block(site)
        given = policy.vector(name).shape
        if len(given) != len(shape) or any(e not in (None, g) for e, g in zip(shape, given, strict=True)):
            raise PolicyError(
                f"vector {name} of policy {policy.name} has the shape {list(given)}; expected "
                f"{['any' if e is None else e for e in shape]} for {lm.name}."
            )
    for site, features in policy.featured.items():
        lm.block(site)
        if site not in saes:
            raise PolicyError(f"policy {policy.name} needs an SAE at {site}; given are {sorted(saes) or 'none'}.")
        sae = saes[site]
        sae.check_width(lm.d_model)
        if (expected := policy.saes.get(site, sae.hash)) != sae.hash:
            raise PolicyError(
                f"policy {policy.name} was made for the SAE {expected} at {site}, not for {sae.hash}; "
                "give its own with --sae."
            )
        sae.check_features(list(features))


def _vectors_of(policy: Policy, d_model: int) -> Iterator[tuple[str, str, tuple[int | None, ...]]]:
    # The site and the name of each vector that the policy uses, and the shape it should have; None is any length.
    for reader in policy.gate.stream_readers if policy.gate else ():
        if isinstance(reader, AttentionSensor):
            name, heads = reader.vector, len(policy.vector(f"{reader.vector}.query"))
            figures = policy.vector(f"{name}.out").size
            yield reader.site, f"{name}.query", (None, d_model)
            # As many figures for every head.
            yield reader.site, f"{name}.value", (heads * (figures // max(heads, 1)), d_model)
            yield from ((reader.site, f"{name}.{part}", (figures,)) for part in ("value_bias", "out"))
        elif not isinstance(reader, FeatureSensor):
            yield reader.site, reader.vector, (d_model,)
    for act in policy.interventions:
        for push in act.pushes:
            yield act.site, push.vector, (d_model, d_model) if push.operation == "map" else (d_model,)
        if act.off:
            yield act.site, act.off, (None, d_model)


def _layer(site: str) -> int:
    return Site.parse(site).layer


def _by_position(prompts: Encoded, by_column: Tensor) -> Tensor:
    # What stands in each column of each row, by position: columns shifted left past the padding, nothing behind the end.
    width = prompts.ids.shape[1]
    column = (torch.arange(width, device=prompts.ids.device)[None, :] + prompts.first[:, None]).clamp_max(width - 1)
    inside = torch.arange(width, device=prompts.ids.device)[None, :] < prompts.mask.sum(1)[:, None]
    return by_column.gather(1, column) * inside


def _of(prompts: Encoded, *roles: Role) -> Bool[Tensor, "batch seq"]:
    # Whether a token has one of the roles.
    return torch.stack([prompts.roles == role for role in roles]).any(0)


def _filled(by_position: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    # Rows of a tensor `[rows, positions]` replaced, the tensor widened where they are longer.
    wider = widened(by_position, new.shape[1])
    wider[rows] = 0
    wider[rows, : new.shape[1]] = new.to(wider.dtype)
    return wider
