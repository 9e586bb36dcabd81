"""What features mean, against naive readings; names by rule and by a model behind an endpoint."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from demur.errors import EndpointError, SettingsError
from demur.features.effect import Bench, try_policies
from demur.features.meaning import Fires, concept_tree, curves, kind_of, nearest, read_kinds, similarity
from demur.features.naming import distinctive, names_by_model, plain_name, words_near
from demur.features.reading import read_prompts
from demur.records import Evidence, Feature, Meaning, Prompt
from tests import tiny
from tests.planted import by_hand
from tests.planted.by_hand import HALF, WRITES


def test_kinds_are_read_on_a_few_prompts_of_each():
    bench, prompts = Bench(tiny.lm(), tiny.sae()), by_hand.prompts(6)
    fires = read_kinds(bench, prompts, each=1)
    kinds = [kind_of(row) for row in prompts.rows]
    assert list(fires.kinds) == list(dict.fromkeys(kinds))
    rows = [prompts.rows[kinds.index(k)].conversation for k in fires.kinds]
    assert torch.equal(fires.on, read_prompts(bench.lm, bench.sae, rows, ["max"])["max"] > 0)


def test_kinds_of_prompts_are_their_categories_or_what_is_harmless_about_them():
    assert kind_of(Prompt(id="a", prompt="x", label="harmful", category="fraud")) == "fraud"
    assert kind_of(Prompt(id="a", prompt="x", label="harmful")) == "harmful"
    assert (
        kind_of(Prompt(id="a", prompt="x", label="benign", kind="lookalike", category="fraud")) == "harmless: lookalike"
    )


def test_rates_are_shares_of_the_prompts_of_a_kind():
    on = torch.tensor([[1, 0], [1, 1], [0, 0]]).bool()
    names, rates = Fires(on, ["b", "a", "b"]).rates
    assert names == ["a", "b"]
    assert rates.tolist() == [[1, 1], [0.5, 0]]


def test_the_nearest_are_those_of_a_sorted_loop():
    sae = tiny.sae()
    found = nearest(sae, [3, 9])
    for feature, near in found.items():
        cosines = [(float(sae.W_dec[feature] @ row), j) for j, row in enumerate(sae.W_dec) if j != feature]
        naive = sorted(cosines, reverse=True)[:5]
        assert list(near) == [j for _, j in naive]
        assert list(near.values()) == pytest.approx([c for c, _ in naive], abs=1e-5)


def test_curves_are_what_each_dose_does():
    bench, rows = by_hand.bench(), by_hand.prompts(8, seed=2).where(label="harmful").rows[0::2]
    alone, together = curves(bench, {WRITES: 2.0, HALF: 4.0}, {WRITES: 2.0, HALF: 4.0}, rows, (0.05, 1.0))
    assert set(alone) == {WRITES, HALF}
    for values, points in (({WRITES: 2.0}, alone[WRITES]), ({WRITES: 2.0, HALF: 4.0}, together)):
        assert [p.dose for p in points] == [0.05, 1.0]
        for p in points:
            policy = bench.raising({f: p.dose * v for f, v in values.items()}, "reply")
            assert p.refused == try_policies(bench, [policy], rows, [])[0].refused
    assert [p.refused for p in alone[WRITES]] == [0, 1]
    assert [p.refused for p in alone[HALF]] == [0, 0]
    assert curves(bench, {}, {}, rows, (1.0,)) == ({}, ())


def test_likeness_is_half_direction_and_half_company():
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    on = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0]]).bool()
    found = similarity(rows, on)
    assert float(found[0, 1]) == pytest.approx((math.sqrt(0.5) + 1 / 3) / 2)
    assert float(found[0, 2]) == 0
    assert float(found[0, 0]) == 1


def test_concepts_are_nested_and_keep_what_is_alike_together():
    alike = torch.full((6, 6), 0.1)
    for group in ([0, 1], [2, 3], [4, 5]):
        alike[group[0], group[1]] = alike[group[1], group[0]] = 0.9
    alike[0, 2] = alike[2, 0] = alike[0, 3] = alike[3, 0] = alike[1, 2] = alike[2, 1] = alike[1, 3] = alike[3, 1] = 0.5
    places = concept_tree(alike, (3, 2))
    assert places[0] == places[1]
    assert places[0][0] == places[2][0]
    assert places[0][1] != places[2][1]
    assert places[4][0] != places[0][0]
    assert concept_tree(torch.ones(1, 1), (3, 2)) == [[1, 1]]


def test_the_words_of_a_context_are_those_beside_its_token():
    assert words_near("one two three four five six« bo»ats seven eight nine ten eleven") == [
        "three", "four", "five", "six", "boats", "boats", "seven", "eight", "nine", "ten",
    ]  # fmt: skip
    assert words_near("un«lock»ed") == ["unlocked", "unlocked"]
    assert words_near("the «!» end") == ["the", "end"]


def test_distinctive_words_are_those_of_the_naive_formula():
    contexts = {1: ["steal «money» today", "hide «money»"], 2: ["«boats» today", "sail «boats»"]}
    found = distinctive(contexts)
    words = {name: [w for c in texts for w in words_near(c)] for name, texts in contexts.items()}
    every = [w for ws in words.values() for w in ws]
    for name, ws in words.items():
        weight = {w: ws.count(w) / len(ws) * math.log(1 + (len(every) / 2) / every.count(w)) for w in set(ws)}
        assert found[name] == sorted(weight, key=lambda w, by=weight: (-by[w], w))[:5]
    assert (found[1][0], found[2][0]) == ("money", "boats")
    assert distinctive({1: []}) == {1: []}


def feature(**more) -> Feature:
    evidence = Evidence(contexts=("Don't «steal» it",), raised=("I", "I", "", "Sorry", "Un", "No"))
    meaning = Meaning(kinds={"credit_theft": 0.8, "fraud": 0.1})
    return Feature(id=3, evidence=evidence, meaning=meaning, **{"role": "actuator"} | more)


def test_a_name_says_what_it_writes_what_it_is_on_and_of_which_kind():
    assert plain_name(feature(), ["steal"], 0.05) == "writes I, Sorry, Un; on steal (credit theft)"
    assert plain_name(feature(role="sensor"), ["steal"], 0.5) == "on steal"
    assert plain_name(feature(role="sensor"), [], 0.05) == "credit theft"
    assert plain_name(Feature(id=1, role="sensor"), [], 0.0) == ""
    assert len(plain_name(feature(), ["x" * 200], 0.0)) == 80


@pytest.fixture
def namer():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][-1]["content"])
            said = '\n"Refusing to steal."\nBecause ...' if "steal" in asked[-1] else "\n"
            reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_a_model_names_features_from_what_a_person_would_read(namer):
    url, asked = namer
    silent = Feature(id=4, role="sensor", evidence=Evidence(contexts=("a «boat»",)))
    assert names_by_model([feature(), silent], url, "m") == {3: "Refusing to steal"}
    (first,) = [q for q in asked if "steal" in q]
    assert "Don't «steal» it" in first
    assert "credit theft 80%" in first
    assert "Sorry" in first


def test_a_namer_that_is_none_is_said():
    with pytest.raises(SettingsError, match="--namer"):
        names_by_model([feature()], "localhost", "m")
    with pytest.raises(EndpointError, match="the namer at"):
        names_by_model([feature()], "http://127.0.0.1:9/v1", "m", timeout=0.2)
