"""The hash from a model's files is that of the model in memory."""

import pytest
import torch

from demur.errors import ModelError
from demur.models import embedded
from demur.models.checkpoint import checkpoint_hash
from demur.models.load import fingerprint, load
from tests import tiny


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_of_any_architecture(tmp_path, architecture):
    model = tiny.lm(architecture).model
    model.save_pretrained(tmp_path)
    assert checkpoint_hash(tmp_path) == fingerprint(model)


def test_of_several_files_and_another_precision(tmp_path):
    model = tiny.lm("qwen2").model
    wanted = fingerprint(model)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert checkpoint_hash(tmp_path / "many") == wanted


def test_changes_with_a_weight(tmp_path):
    model = tiny.lm("llama", torch.float32).model
    model.save_pretrained(tmp_path)
    before = checkpoint_hash(tmp_path)
    weight = next(model.parameters())
    kept = weight.data.clone()
    weight.data[0, 0] += 1
    model.save_pretrained(tmp_path)
    weight.data.copy_(kept)
    assert checkpoint_hash(tmp_path) != before


def test_a_folder_without_a_model_is_one_clear_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        checkpoint_hash(tmp_path)


@pytest.mark.embedded
def test_of_the_embedded_model():
    assert checkpoint_hash(embedded.folder()) == load("embedded").hash
