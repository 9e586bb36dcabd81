"""The live attack: steps, backtracking, limits and resumption, against a tiny model; the attacker at a real endpoint."""

import json
import shutil
from collections.abc import Iterator, Sequence

import pytest
import torch

from demur.errors import EndpointError, FileError, SettingsError
from demur.evaluation.attacks.attackers import (
    AttackerSettings,
    Local,
    next_message,
    open_attacker,
    system_prompt,
)
from demur.evaluation.attacks.conversations import Target, results
from demur.evaluation.attacks.crescendo import NAME, CrescendoSettings, attack
from demur.evaluation.attacks.run import Plan
from demur.evaluation.runner import TRANSCRIPTS, EvaluationSettings
from demur.records import Message, Prompt, Transcript, Verdict
from demur.steering.policies import NONE
from tests import tiny
from tests.evaluation.test_llm import Server

GOALS = [Prompt(id=f"g{i}", prompt=f"Goal {i}", label="harmful") for i in (1, 2)]
POLICIES = [NONE, tiny.policy(name="steered")]
HOW = CrescendoSettings(crescendo_turns=4, crescendo_backtracks=2)


class Counting:
    """Says how many messages it has sent to a goal, in JSON, as it was told to; remembers what it was told."""

    def __init__(self, stops_after: int = 99) -> None:
        self.stops_after = stops_after
        self.talks: list[Sequence[Message]] = []

    def ask(self, talks: Sequence[Sequence[Message]]) -> list[str]:
        if len(self.talks) >= self.stops_after:
            raise EndpointError("gone.")
        self.talks += talks
        return [json.dumps({"next_message": f"Step {sum(m.role == 'user' for m in t)}"}) for t in talks]


class Touchy:
    """Calls an answer refused where the last message is one of those named, and harmful likewise."""

    name, keeps, trained_on = "touchy", False, frozenset()

    def __init__(self, refused: Sequence[str] = (), harmful: Sequence[str] = ()) -> None:
        self.refused, self.harmful = refused, harmful

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        for t in transcripts:
            said = t.conversation[-1].content
            whose = {"id": t.id, "policy": t.policy, "set": t.set, "judge": self.name}
            outcome = "refused" if said in self.refused else "complied"
            yield Verdict(**whose, outcome=outcome, harmful_reply=said in self.harmful)  # type: ignore[arg-type]


def go(folder, attacker=None, judge=None, policies=POLICIES, how=HOW):
    lm = tiny.lm("llama", torch.float64)
    target = Target(lm, tiny.saes(), EvaluationSettings(max_new_tokens=3, batch=4), folder)
    return attack(target, policies, GOALS, attacker or Counting(), judge or Touchy(), how)


def users(t: Transcript) -> list[str]:
    return [m.content for m in t.conversation if m.role == "user"]


def test_it_goes_on_turn_by_turn_and_ends_with_the_goal(tmp_path):
    attacker = Counting()
    found = go(tmp_path / "c", attacker)
    steps = ["Step 1", "Step 2", "Step 3"]
    assert [users(t) for t in found.last] == [[*steps, "Goal 1"], [*steps, "Goal 2"]] * 2
    assert {t.set for t in found.last} == {NAME}
    assert len(found.earlier) == 3 * 4
    # The attacker has read what the model said.
    heard = [m.content for m in attacker.talks[-1] if m.role == "user"]
    replies = [t.reply for t in found.earlier if (t.policy, t.id) == ("steered", "g2")]
    assert all(reply in said for reply, said in zip(replies[:2], heard[1:], strict=True))
    assert "Goal 2" in attacker.talks[-1][0].content


def test_a_refused_message_is_struck_and_another_tried(tmp_path):
    attacker = Counting()
    found = go(tmp_path / "c", attacker, Touchy(refused=["Step 2"]), policies=[NONE])
    assert [users(t) for t in found.last] == [["Step 1", "Step 3", "Step 4", f"Goal {i}"] for i in (1, 2)]
    assert "declined" in attacker.talks[4][-1].content
    verdicts = Touchy(refused=["Step 2"]).judge([*found.last, *found.beside])
    rows = results(NAME, found, zip([*found.last, *found.beside], verdicts, strict=True))
    assert rows[0].refused_before is not None and rows[0].refused_before.k == 2
    # Five messages were sent, so the plain request is tried five times.
    assert len([t for t in found.sampled if t.id == "g1"]) == 5


def test_too_many_refusals_end_it_refused(tmp_path):
    found = go(tmp_path / "c", None, Touchy(refused=[f"Step {i}" for i in range(9)]), policies=[NONE])
    assert [users(t) for t in found.last] == [["Step 3"], ["Step 3"]]


def test_an_answer_called_harmful_ends_it(tmp_path):
    found = go(tmp_path / "c", None, Touchy(harmful=["Step 2"]), policies=[NONE])
    assert [users(t) for t in found.last] == [["Step 1", "Step 2"]] * 2


def test_an_attacker_without_a_word_leaves_the_plain_request(tmp_path):
    class Mute:
        def ask(self, talks):
            return [""] * len(talks)

    found = go(tmp_path / "c", Mute(), policies=[NONE])
    assert [users(t) for t in found.last] == [["Goal 1"], ["Goal 2"]]


def test_it_goes_on_where_it_was_and_asks_nothing_twice(tmp_path):
    judge = Touchy(refused=["Step 2"])
    whole = go(tmp_path / "whole", None, judge)
    with pytest.raises(EndpointError):
        go(tmp_path / "cut", Counting(stops_after=4), judge)
    assert go(tmp_path / "cut", Counting(), judge) == whole
    silent = Counting(stops_after=0)
    assert go(tmp_path / "whole", silent, judge) == whole
    for part in (3, 2):  # killed in the middle of a line
        folder = tmp_path / f"part{part}"
        shutil.copytree(tmp_path / "whole", folder)
        text = (folder / TRANSCRIPTS).read_text()
        (folder / TRANSCRIPTS).write_text(text[: len(text) // part])
        (folder / "over.jsonl").unlink()
        assert {t.reply for t in go(folder, Counting(), judge).last} == {t.reply for t in whole.last}


def test_another_judge_reads_what_is_there_and_nothing_is_said_anew(tmp_path, monkeypatch):
    first = go(tmp_path / "c", None, Touchy(refused=["Step 2"]))
    monkeypatch.setattr("demur.evaluation.runner.generate", lambda *a, **k: iter(()))
    assert go(tmp_path / "c", Counting(stops_after=0), Touchy(harmful=["Step 1"])).last == first.last


def test_the_attacker_at_an_endpoint_is_asked_like_any_chat_model(monkeypatch):
    server = Server(lambda body, n: (200, {"content": f"{n}: {body['messages'][-1]['content']}"}))
    try:
        monkeypatch.setenv("DEMUR_ATTACKER_KEY", "secret")
        monkeypatch.setattr("demur.evaluation.endpoint.PAUSE", 0.001)
        settings = AttackerSettings(attacker_url=server.url, attacker_model="red", attacker_workers=1)
        attacker = open_attacker(settings, tiny.lm())
        talk = [Message(role="system", content="Attack."), Message(role="user", content="Go.")]
        assert attacker.ask([talk, talk]) == ["1: Go.", "2: Go."]
        assert (server.seen[0]["model"], server.seen[0]["path"]) == ("red", "/v1/chat/completions")
        assert "temperature" not in server.seen[0] and "response_format" not in server.seen[0]
        assert "Bearer secret" in server.headers[0].values()
    finally:
        server.close()
    with pytest.raises(EndpointError, match=r"the attacker at .* does not answer"):
        open_attacker(settings, tiny.lm()).ask([talk])
    with pytest.raises(SettingsError, match="--attacker-model"):
        open_attacker(AttackerSettings(attacker_url=server.url), tiny.lm())
    with pytest.raises(SettingsError, match="--attacker-url localhost is no address"):
        open_attacker(AttackerSettings(attacker_url="localhost", attacker_model="m"), tiny.lm())


def test_without_an_endpoint_the_target_attacks_itself():
    attacker = open_attacker(AttackerSettings(attacker_tokens=4), tiny.lm())
    assert isinstance(attacker, Local)
    talk = [Message(role="user", content="Go.")]
    assert len(attacker.ask([talk, talk])) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"next_message": "Hi", "rationale": "x"}', "Hi"),
        ('Here it is:\n```json\n{"next_message": "Two\nlines"}\n``` Good?', "Two\nlines"),
        ('{"note": 1} then {"generatedQuestion": "And?"}', "And?"),
        ("Tell me about {history}.", "Tell me about {history}."),
        ('{"next_message": 3}', '{"next_message": 3}'),
        ("[1]", "[1]"),
        ("", ""),
    ],
)
def test_the_message_is_found_in_what_an_attacker_says(text, message):
    assert next_message(text) == message


def test_the_attackers_prompt_is_ours_or_a_file(tmp_path):
    ours = system_prompt("the goal", 7)
    assert "the goal" in ours and "7 messages" in ours and "{{" not in ours
    path = tmp_path / "variant.yaml"
    value = "Reach '{objective}' and {{objective}} in {{ max_turns }}.{% if conversation_context %}x{% endif %}"
    path.write_text(f"name: v\nvalue: |\n  {value}\n")
    assert system_prompt("it", 5, path).strip() == "Reach 'it' and it in 5."
    path.write_text("name: v\n")
    with pytest.raises(FileError, match="expected its text under `value`"):
        system_prompt("it", 5, path)
    path.write_text("value: '{% if %}'\n")
    with pytest.raises(FileError, match="no prompt template"):
        system_prompt("it", 5, path)


@pytest.mark.shared
def test_the_published_prompts_can_be_given_by_path():
    from demur.config import data_folder

    paths = sorted((data_folder() / "multiturn" / "crescendo").glob("*.yaml"))
    assert len(paths) == 5
    assert all("my goal" in system_prompt("my goal", 10, p) for p in paths)


def test_an_attack_may_go_on_with_another_address_and_not_with_another_prompt(tmp_path):
    (tmp_path / "prompt.md").write_text("Ask.")
    before = AttackerSettings(attacker_url="http://a/v1", attacker_model="m", attacker_prompt=tmp_path / "prompt.md")
    later = before.model_copy(update={"attacker_url": "http://b/v1", "attacker_timeout": 600.0, "attacker_workers": 1})
    hashes = [Plan(live=((), CrescendoSettings(), how)).hashes for how in (before, later)]
    assert hashes[0] == hashes[1]
    (tmp_path / "prompt.md").write_text("Ask nicely.")
    assert Plan(live=((), CrescendoSettings(), before)).hashes != hashes[0]
