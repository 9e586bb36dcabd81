"""dictionary_learning's own classes beside us: a checkpoint of theirs, opened by us, computes the same."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from demur.sae.exchange.formats import open_sae
from tests.parity.weights import D_MODEL, D_SAE, K, draw, same, stream

pytestmark = pytest.mark.peers

CLASSES = {
    "AutoEncoder": "dictionary",
    "AutoEncoderNew": "dictionary",
    "JumpReluAutoEncoder": "dictionary",
    "AutoEncoderTopK": "trainers.top_k",
    "BatchTopKSAE": "trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
}


@pytest.fixture(scope="module")
def library():
    """Their modules, without what the package imports beside: it would want nnsight, which we do not install."""
    spec = find_spec("dictionary_learning")
    assert spec is not None and spec.origin is not None, "make peers installs it"
    package = ModuleType("dictionary_learning")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["dictionary_learning"] = package
    yield lambda name: getattr(importlib.import_module(f"dictionary_learning.{CLASSES[name]}"), name)
    for name in [n for n in sys.modules if n.split(".")[0] == "dictionary_learning"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_of_theirs_opened_by_us_computes_the_same(name, library, tmp_path):
    counted, nested = "TopK" in name, name.startswith("Matryoshka")
    their = library(name)(D_MODEL, D_SAE, *([K] if counted else []), *([[D_SAE // 2, D_SAE // 2]] if nested else []))
    w = draw(0, (1, 1) if name == "AutoEncoderTopK" else (0.4, 2.0))
    theirs = {
        "encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T, "bias": w["b_dec"],
        "decoder.bias": w["b_dec"], **w, "k": torch.tensor(K),
        "group_sizes": torch.tensor([D_SAE // 2, D_SAE // 2]),
    }  # fmt: skip
    if counted:
        theirs["threshold"] = torch.tensor(0.4)
    their.load_state_dict({n: theirs[n] for n in their.state_dict()})
    torch.save({n: v.cpu() for n, v in their.state_dict().items()}, tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 8, "lm_name": "gemma-2-2b"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer | ({"k": K} if counted else {})}))
    our, x = open_sae(tmp_path), stream()
    f = their.encode(x)
    same(our.encode(x), f * w["W_dec"].norm(dim=1))
    same(our.decode(our.encode(x)), their.decode(f))
    assert (our.config.site, our.config.model) == ("8.resid_post", "gemma-2-2b")
