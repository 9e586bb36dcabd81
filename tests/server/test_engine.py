"""The engine: cancelling, waiting, what is held back for the gate on the reply, canned replies, going down."""

import queue
import time

import pytest

from demur.models.chat import tokens_and_roles
from demur.models.generation import GenerationSettings
from demur.server.batch import BrokenBatchError
from demur.server.engine import BusyError, Ended, Engine, Failed, Job, Piece, StoppedError
from demur.server.sampling import Sampling
from demur.server.window import Window
from demur.server.writing import Writing
from demur.steering.generate import generate
from demur.steering.policies import NONE
from tests import tiny
from tests.server.policies import late

TEXT = "How do I bake a cake?"


@pytest.fixture
def engine():
    made = Engine(tiny.lm(), tiny.saes(), rows=3, queue=4)
    made.start()
    yield made
    made.stop()


def job(text=TEXT, policy=NONE, tokens=12, **more) -> tuple[Job, queue.Queue]:
    events: queue.Queue = queue.Queue()
    sampling = {k: more.pop(k) for k in list(more) if k in Sampling.model_fields}
    how = Sampling(max_new_tokens=tokens, **sampling)
    return Job(tokens_and_roles(tiny.lm(), tiny.said(text)[0]), policy, how, events.put, **more), events


def read(events) -> tuple[list[Piece], Ended]:
    pieces = []
    while not isinstance(event := events.get(timeout=60), Ended):
        assert isinstance(event, Piece), event
        pieces.append(event)
    return pieces, event


def test_a_cancelled_choice_makes_room_and_is_heard_of_no_more(engine):
    jobs = [job(tokens=400, ignore_eos=True) for _ in range(5)]
    engine.submit([j for j, _ in jobs])
    while len(engine.rows) < 3:
        time.sleep(0.01)
    engine.cancel([j for j, _ in jobs])
    after, events = job()
    engine.submit([after])
    assert read(events)[1].tokens == 12
    assert engine.counts["cancelled"] == 5
    assert len(engine.rows) == 0
    assert all(e.empty() for _, e in jobs)
    assert sorted(engine.batch.free) == [0, 1, 2]


def test_a_full_queue_is_told_at_once_and_all_or_none_are_taken(engine):
    long = [job(tokens=300, ignore_eos=True) for _ in range(6)]
    engine.submit([j for j, _ in long])
    with pytest.raises(BusyError) as told:
        engine.submit([job()[0] for _ in range(2)])
    assert told.value.seconds >= 1
    engine.submit([job()[0]])
    engine.cancel([j for j, _ in long])


def test_what_waits_when_the_engine_stops_has_failed():
    engine = Engine(tiny.lm(), tiny.saes(), rows=1, queue=4)
    engine.start()
    jobs = [job(tokens=450, ignore_eos=True) for _ in range(2)]
    engine.submit([j for j, _ in jobs])
    while not engine.rows:
        time.sleep(0.01)
    engine.stop()
    for _, events in jobs:
        found = events.get(timeout=5)
        assert isinstance(found, Failed)
        assert isinstance(found.error, StoppedError)
    with pytest.raises(StoppedError):
        engine.submit([job()[0]])


def test_keys_and_values_left_half_way_end_all_rows_and_the_next_begin_afresh(engine, monkeypatch):
    under_way, events = job(tokens=400, ignore_eos=True)
    engine.submit([under_way])
    while not engine.rows:
        time.sleep(0.01)
    joined = Window.join
    monkeypatch.setattr(Window, "join", lambda window, *given: 1 / 0 if window.lengths else joined(window, *given))
    other, more = job("How do I bake bread?")
    engine.submit([other])
    for told in (events, more):
        while isinstance(event := told.get(timeout=60), Piece):
            pass
        assert isinstance(event, Failed) and isinstance(event.error, BrokenBatchError)
    monkeypatch.undo()
    after, events = job()
    engine.submit([after])
    assert read(events)[1].tokens == 12


def test_an_engine_that_cannot_go_on_says_so_to_all_who_wait(engine, monkeypatch):
    jobs = [job(tokens=450, ignore_eos=True) for _ in range(4)]
    engine.submit([j for j, _ in jobs])
    while len(engine.rows) < 3:
        time.sleep(0.01)
    monkeypatch.setattr("demur.server.engine.Batch", lambda *_: 1 / 0)
    monkeypatch.setattr(engine.batch, "step", lambda _tokens: 1 / 0)
    for _, events in jobs:
        while isinstance(event := events.get(timeout=60), Piece):
            pass
        assert isinstance(event, Failed) and isinstance(event.error, StoppedError)
    with pytest.raises(StoppedError):
        engine.submit([job()[0]])


def opening() -> tuple[float, int]:
    """A threshold that the gate on the reply to TEXT first reaches at a late token, and which token that is."""
    policy = late(opens=1e9)
    reply = dict(generate(tiny.lm(), tiny.saes(), tiny.said(TEXT), [policy], GenerationSettings(max_new_tokens=40)))[0]
    trace = reply.steering["trace"]
    at = max(range(6, len(trace)), key=lambda i: (trace[i] - max(trace[:i]) > 0.01, i))
    assert trace[at] > max(trace[:at])
    return (trace[at] + max(trace[:at])) / 2, at


def test_what_the_gate_on_the_reply_stops_was_not_sent(engine):
    threshold, at = opening()
    policy = late(threshold)
    plain = job(tokens=40)
    engine.submit([plain[0]])
    tokens = tiny.tokenizer()(read(plain[1])[1].text, add_special_tokens=False)["input_ids"]
    held, events = job(policy=policy, tokens=40, stream=True, stop_late=True, logprobs=0)
    engine.submit([held])
    pieces, ended = read(events)
    hold = 3
    assert ended.finish == "content_filter"
    assert ended.steering["late"] == at
    assert ended.tokens == at + 1 - hold
    assert "".join(p.text for p in pieces) + ended.rest == ended.text
    assert ended.text == tiny.tokenizer().decode(tokens[: at + 1 - hold], skip_special_tokens=True).strip()
    assert len([s for p in pieces for s in p.scores]) + len(ended.scores) == ended.tokens
    whole, events = job(policy=policy, tokens=40, stop_late=True)
    engine.submit([whole])
    assert read(events)[1].text == ended.text


def test_a_gate_on_the_reply_that_steers_writes_what_chat_writes(engine):
    policy = late(opening()[0])
    wanted = dict(generate(tiny.lm(), tiny.saes(), tiny.said(TEXT), [policy], GenerationSettings(max_new_tokens=40)))[0]
    asked, events = job(policy=policy, tokens=40, stream=True)
    engine.submit([asked])
    pieces, ended = read(events)
    assert ended.text == wanted.text
    assert "".join(p.text for p in pieces) + ended.rest == wanted.text
    assert ended.steering["late"] == wanted.steering["late"]
    assert ended.steering["edited"] == wanted.steering["edited"]


@pytest.mark.parametrize("threshold", [-1e9, 1e9])
def test_a_canned_reply_is_what_chat_says(engine, threshold):
    policy = tiny.policy(threshold=threshold).model_copy(update={"canned": "I would rather not.", "interventions": ()})
    wanted = dict(generate(tiny.lm(), tiny.saes(), tiny.said(TEXT), [policy], GenerationSettings(max_new_tokens=9)))[0]
    asked, events = job(policy=policy, tokens=9, stream=True)
    engine.submit([asked])
    pieces, ended = read(events)
    assert "".join(p.text for p in pieces) + ended.rest == ended.text == wanted.text
    assert (ended.tokens, ended.finish, ended.steering["open"]) == (wanted.tokens, wanted.finish, threshold < 0)


def test_text_in_pieces_is_the_whole_whatever_the_bytes():
    tokenizer = tiny.tokenizer()
    for text in ("  Grüße, 世界! 👩‍🔬  ", "a\n\nb  ", "", "stop here"):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        for stop in ((), ("界!",), ("p he", "ere"), ("never",)):
            for strip in (True, False):
                writing = Writing(tokenizer, stop, strip)
                sent = ""
                for token in tokens:
                    if writing.take(token, look=True):
                        break
                    sent += writing.ready()
                    assert "�" not in sent
                whole = writing.whole()
                assert sent + writing.rest(whole) == whole
                cut = min((text.index(s) for s in stop if s in text), default=len(text))
                assert whole == (text[:cut].strip() if strip else text[:cut])
