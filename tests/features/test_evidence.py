"""Evidence: the context shows the token where the feature is strongest, the words are those that gain most."""

import torch

from demur.features import find
from demur.features.effect import Bench
from demur.features.evidence import WORDS, evidence
from demur.models.chat import tokens_and_roles
from demur.records import Evidence, Feature
from demur.steering.policies import NONE
from demur.steering.score import next_log_probs
from tests import tiny


def test_a_feature_of_both_roles_is_read_at_the_level_to_which_it_is_raised(monkeypatch):
    asked = {}

    def noted(bench, levels, *more):
        asked.update(levels)
        return {f: Evidence() for f in levels}

    monkeypatch.setattr(find, "evidence", noted)
    both = [Feature(id=3, role="actuator", level=4.0), Feature(id=3, role="sensor", level=45.0)]
    find.with_evidence(Bench(tiny.lm(), tiny.sae()), [*both, Feature(id=5, role="sensor", level=7.0)], 0)
    assert asked == {3: 4.0, 5: 7.0}


def test_contexts_and_words_are_what_a_naive_reading_finds():
    lm, sae = tiny.lm(), tiny.sae()
    bench, talk = Bench(lm, sae), tiny.said("Hi", "Why?")
    texts = [tokens_and_roles(lm, c)[0] for c in tiny.said("boats and tea", "sums")]
    hidden = [lm.model(input_ids=torch.tensor([t]), output_hidden_states=True) for t in texts]
    f = [sae.encode(h.hidden_states[2][0, 1:]) for h in hidden]
    feature = int(f[0].amax(0).argmax())
    found = evidence(bench, {feature: 9.0}, texts, talk)[feature]
    texts_by_peak = sorted(range(2), key=lambda i: -float(f[i][:, feature].max()))
    place = int(f[texts_by_peak[0]][:, feature].argmax()) + 1
    strongest = texts[texts_by_peak[0]][place]
    assert f"«{lm.tokenizer.decode([strongest])}»" in found.contexts[0]
    raised = next_log_probs(lm, bench.saes, talk, [bench.raising({feature: 9.0}, "reply")] * 2).exp().mean(0)
    gain = raised - next_log_probs(lm, {}, talk, [NONE] * 2).exp().mean(0)
    assert list(found.raised) == [lm.tokenizer.decode([i]).strip() for i in gain.topk(WORDS).indices.tolist()]
