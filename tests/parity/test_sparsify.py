"""sparsify itself beside us, both ways round: the same weights give the same activations and reconstructions."""

import pytest
import torch

from demur.errors import SAEError
from demur.sae.exchange.formats import open_sae, write
from demur.sae.rules import dense
from tests.parity.weights import D_MODEL, D_SAE, K, draw, ours, same, stream

pytestmark = pytest.mark.peers


def theirs(w: dict, **more):
    from sparsify import SparseCoder, SparseCoderConfig

    made = SparseCoder(D_MODEL, SparseCoderConfig(num_latents=D_SAE, k=K, **more))
    with torch.no_grad():
        made.encoder.weight.copy_(w["W_enc"].T)
        made.encoder.bias.copy_(w["b_enc"])
        made.W_dec.copy_(w["W_dec"])
        made.b_dec.copy_(w["b_dec"])
    return made


def encoded(their, x):
    values, indices, _ = their.encode(x)
    return dense(values, indices, D_SAE)


@pytest.mark.parametrize("norms", [(1, 1), (0.4, 2.0)])
def test_a_folder_of_theirs_opened_by_us_computes_the_same(norms, tmp_path):
    their = theirs(draw(0, norms))
    their.save_to_disk(tmp_path / "layers.3")
    our, x = open_sae(tmp_path / "layers.3"), stream()
    values, indices, _ = their.encode(x)
    same(our.encode(x), encoded(their, x))
    same(our.decode(our.encode(x)), their.decode(values, indices))
    assert our.config.site == "3.resid_post"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ours_written_for_them_computes_the_same(dtype, tmp_path):
    from sparsify import SparseCoder

    our, x = ours("topk", dtype), stream()
    write(our, "sparsify", tmp_path / "out")
    their = SparseCoder.load_from_disk(tmp_path / "out")
    values, indices, _ = their.encode(x)
    same(encoded(their, x), our.encode(x))
    same(their.decode(values, indices), our.decode(our.encode(x)))
    again = open_sae(tmp_path / "out")
    assert (again.hash, again.config) == (our.hash, our.config)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip"),
        ({"activation": "groupmax"}, "groupmax"),
    ],
)
def test_what_is_no_topk_sae_is_refused(options, what, tmp_path):
    theirs(draw(), **options).save_to_disk(tmp_path / "layers.3")
    with pytest.raises(SAEError, match=what):
        open_sae(tmp_path / "layers.3")


def test_a_rule_that_they_do_not_have_is_not_written(tmp_path):
    with pytest.raises(SAEError, match="jumprelu"):
        write(ours("jumprelu"), "sparsify", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
