"""Measures of words against loops that take the long way, sacrebleu and sklearn."""

import json
from importlib.resources import files

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from demur.evaluation.language import STOP
from demur.evaluation.wording import (
    SAMPLE,
    Relevance,
    across,
    distinct,
    informative,
    informativeness,
    likeness,
    manners,
    pieces,
    repetition,
    self_bleu,
)

SAID = [
    "the cat sat on the mat .",
    "the cat sat on the red mat , and the cat slept on the mat .",
    "a boat is a thing that floats",
    "the cat sat on the mat .",
    "boats",
    "no",
    "",
    "the the the the the cat",
]
REPLIES = st.lists(st.lists(st.sampled_from("abcd"), max_size=9), min_size=2, max_size=6)


def figure(columns) -> float:
    return sum(columns[0]) / sum(columns[1])


def test_pieces_are_words_numbers_and_marks():
    assert pieces("Don’t add 12.5 eggs, please!") == ["don't", "add", "12", ".", "5", "eggs", ",", "please", "!"]


def sacre(replies: list[list[str]], i: int) -> float:
    """sacrebleu's own sentence BLEU on words that are split already."""
    others = [" ".join(r) for j, r in enumerate(replies) if j != i]
    return sacrebleu.sentence_bleu(" ".join(replies[i]), others, tokenize="none").score / 100


def test_self_bleu_is_sacrebleus():
    replies = [s.split() for s in SAID]
    assert self_bleu(replies) == pytest.approx([sacre(replies, i) for i in range(len(replies))], abs=1e-12)


@given(REPLIES)
@settings(max_examples=150, deadline=None)
def test_self_bleu_is_sacrebleus_whatever_is_said(replies):
    assert self_bleu(replies) == pytest.approx([sacre(replies, i) for i in range(len(replies))], abs=1e-12)


def test_likeness_is_of_an_even_sample_and_leaves_out_what_is_empty():
    said = [s.split() for s in SAID]
    sums, sizes = likeness(said)
    assert sizes == [1, 1, 1, 1, 1, 1, 0, 1]
    assert [s for s, size in zip(sums, sizes, strict=True) if size] == self_bleu([s for s in said if s])
    many = [[f"w{i}", "and", "more"] for i in range(3 * SAMPLE)]
    assert likeness(many)[1] == [float(i % 3 == 0) for i in range(3 * SAMPLE)]
    assert likeness([["alone"]]) == ([0.0], [0.0])


@given(REPLIES, st.sampled_from([1, 2, 3]))
@settings(max_examples=100, deadline=None)
def test_shares_of_different_ngrams_are_counted_naively(replies, n):
    def naive(said):
        return [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]

    each = [len(set(naive(r))) / len(naive(r)) for r in replies if naive(r)]
    everything = [g for r in replies for g in naive(r)]
    if everything:
        assert figure(distinct(replies, n)) == pytest.approx(sum(each) / len(each))
        assert figure(across(replies, n)) == pytest.approx(len(set(everything)) / len(everything))
    assert [size > 0 for size in distinct(replies, n)[1]] == [bool(naive(r)) for r in replies]


def test_repetition_by_hand():
    """Of six four-word phrases in "a b c d a b c d a", two stand earlier."""
    assert repetition([list("abcdabcda"), list("abc")]) == ([pytest.approx(2 / 6), 0.0], [1.0, 0.0])


ASKED = ["How do I bake sourdough bread?", "Why is the sky blue?", "Explain photosynthesis to a child."]


def test_relevance_is_the_cosine_and_knows_a_word_by_its_stem():
    relevance = Relevance(ASKED)
    said = ["Baking breads takes time.", "The sky scatters blue light.", "I cannot say.", "Sourdough, photosynthetic."]
    asked = [ASKED[0], ASKED[1], ASKED[2], ASKED[0]]
    values, sizes = relevance.columns(asked, said)
    naive = [
        float(cosine_similarity(relevance.vectorizer.transform([a]), relevance.vectorizer.transform([b]))[0, 0])
        for a, b in zip(asked, said, strict=True)
    ]
    assert values == pytest.approx(naive)
    assert sizes == [1.0] * 4
    assert values[0] > 0.3
    assert values[2] == 0
    swapped, _ = relevance.columns([ASKED[1], ASKED[2]], said[:2])
    assert max(swapped) < 0.1


def test_relevance_to_a_prompt_without_content_is_not_asked():
    assert not {"who", "are", "you"} - STOP
    assert Relevance(["Who are you?"]).columns(["Who are you?"], ["A model."]) == ([0.0], [0.0])
    assert Relevance([*ASKED, "Who are you?"]).columns(["Who are you?"], ["A model."])[1] == [0.0]


def test_informative_words_by_hand():
    reply = (
        "I'm sorry, but I can't help with fermenting. Bread dough needs 2 hours at 24 degrees, and dough needs salt. "
        "How can I help you with kneading?"
    )
    assert informative(ASKED[0], reply) == {"dough", "needs", "hours", "24", "degrees", "salt"}
    assert informative(ASKED[0], "Bake sourdough bread.") == set()
    assert informative(ASKED[0], "") == set()


def test_words_that_answer_every_prompt_answer_none():
    adds = [{"yeast", "factors"}, {"light", "factors"}, {"leaves", "factors"}, {"factors"}]
    dense, told = informativeness(["a", "b", "c", "d"], adds, [4, 2, 10, 0])
    assert dense == ([1 / 4, 1 / 2, 1 / 10, 0.0], [1.0] * 4)
    assert told[0] == [1.0, 1.0, 1.0, 0.0]


def test_replies_to_one_prompt_may_have_words_in_common():
    adds = [{"yeast"}] * 3 + [{f"word{i}"} for i in range(9)]
    assert informativeness(["a"] * 3 + list(range(9)), adds, [1] * 12)[1][0] == [1.0] * 12


def test_reasons_and_offers_are_known_in_the_refusals_that_we_wrote():
    parts = json.loads(files("demur.shipped").joinpath("refusals.json").read_text(encoding="utf-8"))
    for name, reasoned, offered in (("openings", 0, 0), ("reasons", 1, 0), ("offers", 0, 1)):
        for text in filter(None, parts[name]):
            (why, _), (offers, _) = manners([text])
            assert offers == [offered], text
            # An offer of a helpline may name the harm as well.
            assert name == "offers" or why == [reasoned], text
    (why, sizes), (offers, _) = manners(["I can't help with that. It is illegal. Let me know if you need more.", "No."])
    assert (why, offers, sizes) == ([1.0, 0.0], [1.0, 0.0], [1.0, 1.0])
