"""Other libraries' files without the libraries: formulas from their sources, which format a path is of, where it belongs."""

import json
from itertools import product

import pytest
import torch

from demur.errors import SAEError
from demur.sae.exchange.foreign import folded, site_of
from demur.sae.exchange.formats import format_of, open_sae, read_foreign, write
from demur.sae.sae import SAE
from demur.verbs.convert import convert_verb
from tests.parity.weights import D_SAE, draw, ours, same, stream
from tests.sae.exchange.folders import MAKERS, dictionary, gemma_npz, gemma_safetensors
from tests.verbs.test_bad_input import run


@pytest.mark.parametrize("make", [gemma_npz, gemma_safetensors])
def test_gemma_scope_is_its_tutorials_formula(make, tmp_path):
    w, x, our = draw(), stream(), open_sae(make(tmp_path))
    pre = x @ w["W_enc"] + w["b_enc"]
    f = (pre > w["threshold"]) * torch.relu(pre)
    same(our.encode(x), f * w["W_dec"].norm(dim=1))
    same(our.decode(our.encode(x)), f @ w["W_dec"] + w["b_dec"])


def test_where_gemma_scope_belongs_is_in_its_folders(tmp_path):
    two, three = open_sae(gemma_npz(tmp_path)).config, open_sae(gemma_safetensors(tmp_path)).config
    assert (two.site, two.model) == ("20.resid_post", "google/gemma-2-2b")
    assert (three.site, three.model) == ("9.resid_post", "google/gemma-3-1b-it")


def test_batchtopk_of_dictionary_learning_is_its_formula(tmp_path):
    w, x, our = draw(), stream(), open_sae(dictionary(tmp_path))
    f = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    f = f * (f > 0.5)
    same(our.encode(x), f * w["W_dec"].norm(dim=1))
    same(our.decode(our.encode(x)), f @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_known_by_its_folder_and_by_its_file(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    known = format_of(folder)
    assert known is not None and name.startswith(known[0])
    weights = max(folder.iterdir(), key=lambda p: p.stat().st_size)
    assert format_of(weights) == known
    assert open_sae(weights).hash == open_sae(folder).hash


@pytest.mark.parametrize(
    ("to", "rule"),
    [*product(["demur", "saelens"], ["topk", "batchtopk", "jumprelu", "relu"]), ("sparsify", "topk")],
)
def test_a_round_trip_is_the_same_sae_hash_and_all(to, rule, tmp_path):
    our = ours(rule, "float16")
    write(our, to, tmp_path / "out")
    again = open_sae(tmp_path / "out")
    assert (again.hash, again.config) == (our.hash, our.config)


@pytest.mark.parametrize("name", MAKERS)
def test_converted_to_ours_it_is_what_was_opened(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    opened = open_sae(folder)
    write(opened, "demur", tmp_path / "out")
    assert SAE.load(tmp_path / "out").hash == opened.hash


@pytest.mark.parametrize("to", ["demur", "saelens"])
def test_an_sae_given_to_another_model_keeps_nothing_of_the_one_before(to, tmp_path, capsys):
    write(ours("topk", "float16"), to, tmp_path / "before")
    convert_verb(tmp_path / "before", out=tmp_path / "after", model="another")
    capsys.readouterr()
    assert (SAE.load(tmp_path / "after").config.model, SAE.load(tmp_path / "after").config.model_hash) == (
        "another",
        "",
    )


def test_folding_changes_nothing_that_is_computed_in_float64(tmp_path):
    theirs = read_foreign(gemma_npz(tmp_path))
    exact = {n: w.double() for n, w in theirs.weights.items()}
    w = folded(type(theirs)(**{**theirs.__dict__, "weights": exact, "scale": 0.3}))
    x = stream().double()
    pre = 0.3 * x @ exact["W_enc"] + exact["b_enc"]
    f = (pre > exact["threshold"]) * torch.relu(pre)
    mine = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    g = (mine > w["threshold"]) * torch.relu(mine)
    assert torch.allclose(g @ w["W_dec"] + w["b_dec"], (f @ exact["W_dec"] + exact["b_dec"]) / 0.3, atol=1e-12)
    assert torch.allclose(w["W_dec"].norm(dim=1), torch.ones(D_SAE).double(), atol=1e-14)


def test_names_of_places():
    assert site_of("blocks.14.hook_resid_post") == "14.resid_post"
    assert site_of("blocks.14.hook_resid_pre") == "13.resid_post"
    assert site_of("blocks.0.hook_resid_pre") is None
    assert site_of("model.layers.7") == site_of("layers.7") == site_of("transformer.h.7") == "7.resid_post"
    assert site_of("gpt_neox.layers.7") == site_of("model.layers.7.output") == "7.resid_post"
    assert site_of("resid_post_layer_3") == "3.resid_post"
    for other in ("blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "layers.3.mlp", "mlp", ""):
        assert site_of(other) is None


def test_an_sae_that_does_not_say_where_it_belongs_names_the_command(tmp_path, monkeypatch, capsys):
    folder = dictionary(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["trainer"] |= {"submodule_name": None, "layer": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SAEError, match=r"demur convert .* --site") as error:
        open_sae(folder)
    command = str(error.value)[str(error.value).index("demur convert") :].split()
    words = [w.replace("14.resid_post", "8.resid_post").replace("DIR", str(tmp_path / "named")) for w in command]
    assert "demur find --sae" in run(monkeypatch, capsys, *words[1:])[1]
    assert open_sae(tmp_path / "named").config.site == "8.resid_post"


@pytest.mark.parametrize("name", MAKERS)
def test_inspect_says_which_format_it_is(name, tmp_path, monkeypatch, capsys):
    folder = MAKERS[name](tmp_path)
    body = json.loads(run(monkeypatch, capsys, "inspect", str(folder), "--json")[1])
    assert name.startswith(body["format"])
    assert (body["kind"], body["d_sae"], body["hash"]) == ("sae", D_SAE, open_sae(folder).hash)
