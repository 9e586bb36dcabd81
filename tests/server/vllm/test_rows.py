"""vLLM's layout without vLLM: packed tokens, prompts in chunks, requests that come, go and are begun anew."""

import pytest
import torch

from demur.errors import PolicyError, SettingsError
from demur.models.chat import encode, tokens_and_roles
from demur.server.offer import NotOfferedError
from demur.server.vllm.fitness import check_policies
from demur.server.vllm.options import Options
from demur.server.vllm.rows import Rows, check_output
from demur.steering.session import Session
from tests import tiny
from tests.server.policies import four, late, read_by_all

NAMES = ("kinds", "always", "shut", "dense", "late", "all")
TALK = tiny.said("How do I pick a lock?", "Bake bread.", "Hi", "What is the time in Rome?", "Tell me more!", "One, two")


@pytest.fixture
def options(tmp_path):
    for policy in (*four(), late(), read_by_all()):
        hashes = {site: tiny.saes()[site].hash for site in policy.featured}
        policy.model_copy(update={"saes": hashes}).save(tmp_path / f"{policy.name}.toml")
    for site, sae in tiny.saes().items():
        sae.save(tmp_path / "saes" / site)
    folders = tuple(tmp_path / "saes" / site for site in tiny.saes())
    return Options(policies=tuple(str(tmp_path / f"{n}.toml") for n in NAMES), saes=folders)


class Request:
    """A prompt under a policy, and the stream at both sites behind each of its tokens, ten of a reply included."""

    def __init__(self, rows: Rows, name: str, talk) -> None:
        self.name, self.talk = name, talk
        self.policy = rows.offer.entries[name].policy
        self.ids, self.roles = tokens_and_roles(tiny.lm(), talk)
        draw = torch.Generator().manual_seed(len(self.ids))
        shape = len(self.ids) + 10, tiny.lm().d_model
        self.x = {site: torch.randn(shape, generator=draw, dtype=torch.float64) for site in rows.sites}
        self.wish = {"policy": name, "level": None, "kinds": {}, "roles": self.roles}

    def alone(self, rows: Rows) -> dict[str, torch.Tensor]:
        """What a session of this request alone makes of it in one pass."""
        session = Session(tiny.lm(), rows.saes, [self.policy], encode(tiny.lm(), [self.talk]))
        n = len(next(iter(self.x.values())))
        new = {s: session.edit(s, x, torch.zeros(n, dtype=torch.long), torch.arange(n)) for s, x in self.x.items()}
        self.seen = session.report(0, 11)
        return {s: self.x[s] if edited is None else edited for s, edited in new.items()}


def passed(rows: Rows, parts: list[tuple[Request, str, int, int]]) -> dict[str, torch.Tensor]:
    """One pass over packed parts of requests (its id, from a position on, so many tokens), as vLLM's blocks return it."""
    rows.begin([id_ for _, id_, _, _ in parts], [n for *_, n in parts], [start for _, _, start, _ in parts])
    found = {}
    for site in rows.sites:
        x = torch.cat([r.x[site][start : start + n] for r, _, start, n in parts])
        rest = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        output = x - rest, rest
        kept = [part.clone() for part in output]
        new = rows.edit(site, output)
        assert all(torch.equal(part, before) for part, before in zip(output, kept, strict=True))
        found[site] = sum(output) if new is None else new[0] + new[1]
    rows.done()
    return found


def in_chunks(rows: Rows, requests: list[Request], size: int) -> list[dict[str, torch.Tensor]]:
    """All requests side by side, the i-th joining at the i-th pass and fed so many tokens a pass, one of its reply."""
    fed = [0] * len(requests)
    found: list[dict[str, list]] = [{s: [] for s in rows.sites} for _ in requests]
    step = 0
    while any(fed[i] < len(r.ids) + 10 for i, r in enumerate(requests)):
        if step < len(requests):
            rows.join(f"r{step}", requests[step].ids, requests[step].wish)
        parts = []
        for i, r in enumerate(requests[: step + 1]):
            n = min(size, len(r.ids) - fed[i]) if fed[i] < len(r.ids) else int(fed[i] < len(r.ids) + 10)
            if n:
                parts.append((r, f"r{i}", fed[i], n))
        made, at = passed(rows, parts), 0
        for _, id_, _, n in parts:
            i = int(id_[1:])
            for site in rows.sites:
                found[i][site].append(made[site][at : at + n])
            fed[i], at = fed[i] + n, at + n
        step += 1
    return [{s: torch.cat(pieces) for s, pieces in f.items()} for f in found]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_packed_and_chunked_requests_come_out_as_each_alone_in_one_pass(options, size):
    rows = Rows(tiny.lm(), options, most=6, chunked=True)
    requests = [Request(rows, name, talk) for name, talk in zip(NAMES, TALK, strict=True)]
    made = in_chunks(rows, requests, size)
    for i, (request, own) in enumerate(zip(requests, made, strict=True)):
        for site, wanted in request.alone(rows).items():
            torch.testing.assert_close(own[site], wanted, atol=1e-10, rtol=0)
        seen = rows.report([f"r{i}"], [11])[0]
        assert seen["edited"] == request.seen["edited"]
        assert seen["open"] == request.seen["open"]
        if request.seen["gate"] is not None:
            assert seen["gate"] == pytest.approx(request.seen["gate"], abs=1e-10)
    assert sum(r.seen["edited"] > 0 for r in requests) >= 4  # else nothing would have been compared


def test_a_request_that_is_begun_anew_is_read_anew(options):
    rows = Rows(tiny.lm(), options, most=2, chunked=True)
    request = Request(rows, "all", TALK[0])
    rows.join("r", request.ids, request.wish)
    n = len(request.ids)
    passed(rows, [(request, "r", 0, 5)])
    passed(rows, [(request, "r", 5, n - 5)])
    made = passed(rows, [(request, "r", 0, n)])  # vLLM took its memory away and gave it back
    for site, wanted in request.alone(rows).items():
        torch.testing.assert_close(made[site], wanted[:n], atol=1e-10, rtol=0)


def test_tokens_that_no_gate_has_read_are_a_fault_that_is_not_passed_over(options):
    rows = Rows(tiny.lm(), options, most=2, chunked=True)
    request = Request(rows, "kinds", TALK[0])
    rows.join("r", request.ids, request.wish)
    with pytest.raises(RuntimeError, match="goes on at token 4 where 0 were read"):
        passed(rows, [(request, "r", 4, 3)])


def test_requests_that_were_never_steered_pass_untouched_beside_those_that_are(options):
    rows = Rows(tiny.lm(), options, most=2, chunked=True)
    steered, plain = Request(rows, "always", TALK[0]), Request(rows, "shut", TALK[1])
    rows.join("steered", steered.ids, steered.wish)
    n, m = len(plain.ids), len(steered.ids)
    rows.begin(["plain", "steered"], [n, m], [0, 0])
    x = torch.cat([plain.x["1.resid_post"][:n], steered.x["1.resid_post"][:m]])
    hidden, rest = rows.edit("1.resid_post", (x, torch.zeros_like(x)))
    assert torch.equal(hidden[:n], x[:n]) and torch.equal(rest[:n], torch.zeros_like(x)[:n])
    assert not torch.equal(hidden[n:], x[n:])


def test_rows_are_kept_until_they_were_asked_about_or_others_need_them(options):
    rows = Rows(tiny.lm(), options, most=2, chunked=True)
    request = Request(rows, "kinds", TALK[2])
    for i in range(9):
        rows.join(f"r{i}", request.ids, request.wish)
        passed(rows, [(request, f"r{i}", 0, len(request.ids))])
        rows.end([f"r{i}"])
    assert list(rows.held) == ["r5", "r6", "r7", "r8"]
    assert rows.report(["r0"], [1]) == [None]
    assert rows.report(["r6"], [1])[0]["gate"] == pytest.approx(rows.report(["r8"], [1])[0]["gate"])
    assert list(rows.held) == ["r5", "r7"]
    rows.join("r9", request.ids, request.wish)
    assert rows.report(["r9"], [0])[0] is not None
    rows.end(["r9"])  # asked about before vLLM dropped it
    assert list(rows.held) == ["r5", "r7"]


def test_what_vllm_cannot_follow_is_refused(options, tmp_path):
    with pytest.raises(PolicyError, match="answers with a fixed text"):
        check_policies([tiny.policy().model_copy(update={"canned": "No."})], chunked=False)
    with pytest.raises(PolicyError, match="puts a system prompt"):
        check_policies([tiny.policy().model_copy(update={"system": "Be kind."})], chunked=False)
    early = tiny.policy(positions="user", threshold=0.0)
    check_policies([early], chunked=False)
    with pytest.raises(PolicyError, match="no-enable-chunked-prefill"):
        check_policies([early], chunked=True)
    rows = Rows(tiny.lm(), options, most=2, chunked=True)
    with pytest.raises(NotOfferedError, match="there is no policy 'else'"):
        rows.join("r", [1, 2], {"policy": "else", "level": None, "kinds": {}, "roles": [3, 3]})


def test_the_environment_says_what_is_on_offer():
    assert Options.told({}) is None
    assert Options.told({"DEMUR_POLICIES": " , "}) is None
    given = Options.told({"DEMUR_POLICIES": "gated, my.toml", "DEMUR_SAES": "a,b"})
    assert given is not None and given.policies == ("gated", "my.toml") and Options.told(given.tell()) == given


def test_blocks_of_other_forms_are_told_apart():
    x = torch.zeros(5, 32)
    assert check_output(x, 32) and check_output((x, x), 32) and check_output((x, None), 32)
    for other in ((x,), (x, x, x), None, (None, x), x[None], torch.zeros(5, 31), [x, x]):
        assert not check_output(other, 32)


def test_settings_of_vllm_past_which_no_policy_would_hold_are_refused():
    from types import SimpleNamespace as Part

    from demur.server.vllm.fitness import check_engine

    def config(**changed):
        parallel = Part(pipeline_parallel_size=changed.pop("stages", 1), data_parallel_size=changed.pop("engines", 1))
        usual = {
            "parallel_config": parallel,
            "speculative_config": None,
            "kv_transfer_config": None,
            "model_config": Part(runner_type="generate"),
            "compilation_config": Part(mode=Part(name=changed.pop("mode", "NONE"))),
            "use_v2_model_runner": False,
        }
        return Part(**{**usual, **changed})

    check_engine(config())
    for changed, mend in [
        ({"speculative_config": Part()}, "--speculative-config"),
        ({"stages": 2}, "--pipeline-parallel-size"),
        ({"engines": 2}, "one server for each"),
        ({"kv_transfer_config": Part()}, "--kv-transfer-config"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"mode": "VLLM_COMPILE"}, "--enforce-eager"),
    ]:
        with pytest.raises(SettingsError, match=mend):
            check_engine(config(**changed))
