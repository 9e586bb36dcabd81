"""SAELens itself beside us, both ways round: the same weights give the same activations and reconstructions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from demur.activations.stream import read_rows
from demur.data.prompts import shipped_prompts
from demur.errors import FileError, SAEError
from demur.models.chat import tokens_and_roles
from demur.models.load import load
from demur.sae.exchange.formats import open_sae, read_foreign, write
from demur.sae.rules import dense
from demur.steering.policies import shipped
from tests.parity.weights import D_MODEL, D_SAE, K, draw, ours, same, stream

pytestmark = pytest.mark.peers

METADATA = {"model_name": "pythia-70m", "hook_name": "blocks.3.hook_resid_post"}


def theirs(kind: str, w: dict, **more):
    """An SAE of theirs with these weights."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    config, made = {
        "standard": (sae_lens.StandardSAEConfig, sae_lens.StandardSAE),
        "topk": (sae_lens.TopKSAEConfig, sae_lens.TopKSAE),
        "jumprelu": (sae_lens.JumpReLUSAEConfig, sae_lens.JumpReLUSAE),
        "batchtopk": (sae_lens.BatchTopKTrainingSAEConfig, sae_lens.BatchTopKTrainingSAE),
    }[kind]
    sae = made(config(d_in=D_MODEL, d_sae=D_SAE, metadata=SAEMetadata(**METADATA), **more))
    state = sae.state_dict()
    sae.load_state_dict({name: w.get(name, value) for name, value in state.items()})
    return sae


CASES = {
    "standard": ("standard", {}),
    "standard, the input keeps the bias": ("standard", {"apply_b_dec_to_input": False}),
    "topk by norm": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "topk by norm, the input keeps the bias": (
        "topk",
        {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False},
    ),
    "jumprelu": ("jumprelu", {}),
    "jumprelu, the input keeps the bias": ("jumprelu", {"apply_b_dec_to_input": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_theirs_opened_by_us_computes_the_same(case, tmp_path):
    kind, options = CASES[case]
    w = draw()
    their = theirs(kind, w, **options)
    their.save_model(tmp_path)
    our, x = open_sae(tmp_path), stream()
    f = their.encode(x)
    # Theirs times the norms of their rows is ours; by norm, they have multiplied already.
    norms = 1 if options.get("rescale_acts_by_decoder_norm") else w["W_dec"].norm(dim=1)
    same(our.encode(x), f * norms)
    same(our.decode(our.encode(x)), their.decode(f))
    assert torch.allclose(our.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)
    assert (our.config.site, our.config.model) == ("3.resid_post", "pythia-70m")


@pytest.mark.parametrize("norms", [(1, 1), (0.4, 2.0)])
def test_topk_by_activations_alone_chooses_the_same_features_whatever_the_norms(norms, tmp_path):
    w = draw(1, norms)
    their = theirs("topk", w, k=K)
    their.save_model(tmp_path)
    our, x = open_sae(tmp_path), stream()
    same(our.encode(x), their.encode(x))
    same(our.decode(our.encode(x)), their.decode(their.encode(x)))


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("scale", [None, 0.37])
def test_batchtopk_in_a_stopped_training_is_what_they_save_at_its_end(by_norm, scale, tmp_path):
    w = draw(2)
    their = theirs("batchtopk", w, k=K + 0.3, rescale_acts_by_decoder_norm=by_norm)
    their.topk_threshold = torch.tensor(0.8, dtype=torch.double)
    if scale is not None:
        their.cfg.normalize_activations = "expected_average_only_in"
        (tmp_path / "stopped").mkdir()
        (tmp_path / "stopped" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    their.save_model(tmp_path / "stopped")
    if scale is not None:
        their.fold_activation_norm_scaling_factor(scale)
    their.save_inference_model(tmp_path / "ended")
    import sae_lens

    ended = sae_lens.SAE.load_from_disk(tmp_path / "ended")
    our, x = open_sae(tmp_path / "stopped"), stream()
    assert (our.config.rule, our.config.k) == ("batchtopk", K)
    same(our.encode(x), ended.encode(x) * ended.W_dec.norm(dim=1))
    same(our.decode(our.encode(x)), ended.decode(ended.encode(x)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu", "relu"])
def test_ours_written_for_them_computes_the_same(rule, dtype, tmp_path):
    import sae_lens

    our, x = ours(rule, dtype), stream()
    write(our, "saelens", tmp_path / "out")
    their = sae_lens.SAE.load_from_disk(tmp_path / "out")
    same(their.encode(x), our.encode(x))
    same(their.decode(their.encode(x)), our.decode(our.encode(x)))
    assert their.cfg.metadata.hook_name == "blocks.5.hook_resid_post"
    again = open_sae(tmp_path / "out")
    assert (again.hash, again.config) == (our.hash, our.config)


def test_ours_changed_by_them_is_another(tmp_path):
    import sae_lens

    our = ours("jumprelu", "float16")
    write(our, "saelens", tmp_path / "out")
    their = sae_lens.SAE.load_from_disk(tmp_path / "out")
    their.W_dec.data *= 1.5
    their.save_model(tmp_path / "changed")
    again, x = open_sae(tmp_path / "changed"), stream()
    assert again.hash != our.hash
    assert (again.config.site, again.config.model) == (our.config.site, our.config.model)
    same(again.decode(again.encode(x)), their.decode(their.encode(x)))


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale", "covariance_whitening"])
def test_inputs_changed_token_by_token_are_refused(how, tmp_path):
    theirs("standard", draw(), normalize_activations=how).save_model(tmp_path)
    with pytest.raises(SAEError, match=how):
        open_sae(tmp_path)


def test_inputs_scaled_by_an_unknown_number_are_refused(tmp_path):
    theirs("standard", draw(), normalize_activations="expected_average_only_in").save_model(tmp_path)
    with pytest.raises(FileError, match=r"activation_scaler\.json"):
        open_sae(tmp_path)


def test_a_folder_of_before_version_6_is_read_as_they_read_it(tmp_path):
    import sae_lens
    from safetensors.torch import save_file

    w = draw(4, (1, 1))
    save_file({n: w[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}, tmp_path / "sae_weights.safetensors")
    old = {
        "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 9}, "hook_name": "blocks.4.hook_resid_pre", "model_name": "gpt2-small",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "finetuning_scaling_factor": False,
    }  # fmt: skip
    Path(tmp_path / "cfg.json").write_text(json.dumps(old))
    their, our, x = sae_lens.SAE.load_from_disk(tmp_path), open_sae(tmp_path), stream()
    same(our.encode(x), their.encode(x))
    assert our.config.site == "3.resid_post"


def test_kinds_that_we_have_no_rule_for_are_refused(tmp_path):
    import sae_lens

    sae_lens.GatedSAE(sae_lens.GatedSAEConfig(d_in=D_MODEL, d_sae=D_SAE)).save_model(tmp_path)
    with pytest.raises(SAEError, match="'gated'"):
        read_foreign(tmp_path)


@pytest.mark.embedded
def test_the_shipped_sae_on_real_activations_is_the_same_in_saelens_and_sparsify(tmp_path):
    import sae_lens
    from sparsify import SparseCoder

    lm, our = load("embedded"), open_sae(shipped() / "sae")
    talk = [row.conversation for row in shipped_prompts("train").sample(24).rows]
    rows = [np.array(tokens_and_roles(lm, c)[0]) for c in talk]
    x = read_rows(lm, [our.config.site], rows)[:, 0]
    for to in ("saelens", "sparsify"):
        write(our, to, tmp_path / to)
    lens, coder = sae_lens.SAE.load_from_disk(tmp_path / "saelens"), SparseCoder.load_from_disk(tmp_path / "sparsify")
    values, indices, _ = coder.encode(x)
    f = our.encode(x)
    for theirs, back in (
        (lens.encode(x), lens.decode(lens.encode(x))),
        (dense(values, indices, our.config.d_sae), coder.decode(values, indices)),
    ):
        same(theirs, f)
        same(back, our.decode(f))
