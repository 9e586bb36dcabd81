"""A small SAE in each format, written by hand as the other libraries write it."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from demur.sae.exchange.formats import write
from tests.parity.weights import D_MODEL, D_SAE, K, draw, ours


def gemma_npz(home: Path) -> Path:
    folder = home / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: w.numpy() for name, w in draw().items()})
    return folder


def gemma_safetensors(home: Path) -> Path:
    folder = home / "gemma-scope-2-1b-it" / "resid_post" / "layer_9_width_16k_l0_small"
    folder.mkdir(parents=True)
    named = {n.replace("W_", "w_"): w.contiguous() for n, w in draw().items()}
    save_file(named, folder / "params.safetensors")
    return folder


def dictionary(home: Path) -> Path:
    folder = home / "trainer_0"
    folder.mkdir()
    w = draw()
    state = {
        "b_dec": w["b_dec"], "encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.contiguous(), "k": torch.tensor(K), "threshold": torch.tensor(0.5),
    }  # fmt: skip
    torch.save(state, folder / "ae.pt")
    trainer = {
        "dict_class": "BatchTopKSAE", "activation_dim": D_MODEL, "dict_size": D_SAE, "k": K, "layer": 8,
        "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_8",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def saelens(home: Path) -> Path:
    write(ours("jumprelu"), "saelens", home / "lens")
    return home / "lens"


def sparsify(home: Path) -> Path:
    write(ours("topk"), "sparsify", home / "layers.5")
    return home / "layers.5"


def own(home: Path) -> Path:
    write(ours("batchtopk"), "demur", home / "own")
    return home / "own"


MAKERS = {
    "SAELens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary, "Gemma Scope": gemma_npz,
    "Gemma Scope 2": gemma_safetensors, "demur": own,
}  # fmt: skip
