"""Foreign files that are hostile, cut short, damaged or of another width: one clear sentence, nothing run, nothing left."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from demur.errors import DemurError, FileError
from demur.sae.exchange.formats import open_sae
from tests.sae.exchange.folders import MAKERS, dictionary, gemma_npz, saelens
from tests.verbs.test_bad_input import run


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def refused(monkeypatch, capsys, sae: Path, tmp_path: Path, wanted: str) -> None:
    """`demur convert` says one sentence and leaves nothing."""
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, err = run(monkeypatch, capsys, "convert", str(sae), "--out", str(tmp_path / "out"))
    said = [line for line in err.splitlines() if line.startswith("demur: ")]
    assert (code, len(said)) == (1, 1), err
    assert wanted in said[0]
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["the whole", "a value", "old format"])
def test_a_hostile_checkpoint_runs_nothing(where, tmp_path, monkeypatch, capsys):
    folder, mark = dictionary(tmp_path), tmp_path / "pwned"
    bad = Hostile(mark)
    if where == "old format":
        (folder / "ae.pt").write_bytes(pickle.dumps(bad))
    else:
        torch.save(bad if where == "the whole" else {"k": bad}, folder / "ae.pt")
    refused(monkeypatch, capsys, folder, tmp_path, "more than tensors")
    assert not mark.exists()
    pickle.loads(pickle.dumps(bad))  # it would have
    assert mark.exists()


def test_a_hostile_npz_runs_nothing(tmp_path, monkeypatch, capsys):
    folder, mark = gemma_npz(tmp_path), tmp_path / "pwned"
    with np.load(folder / "params.npz") as found:
        good = dict(found)
    np.savez(folder / "params.npz", **{**good, "W_enc": np.array([Hostile(mark)], dtype=object)}, allow_pickle=True)
    refused(monkeypatch, capsys, folder, tmp_path, "more than arrays")
    raw = io.BytesIO(pickle.dumps(Hostile(mark)))
    with zipfile.ZipFile(folder / "params.npz", "w") as made:
        made.writestr("W_enc.npy", raw.getvalue())
    refused(monkeypatch, capsys, folder, tmp_path, "params.npz")
    assert not mark.exists()


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_cut_anywhere_is_one_clear_sentence(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    for file in sorted(p for p in folder.iterdir() if p.name != "card.json"):
        whole = file.read_bytes()
        for share in (0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1):
            file.write_bytes(whole[: int(share * (len(whole) - 2))])
            with pytest.raises(DemurError) as error:
                open_sae(folder)
            assert file.name in str(error.value) or str(folder) in str(error.value)
        file.unlink()
        with pytest.raises(DemurError):
            open_sae(folder)
        file.write_bytes(whole)
    open_sae(folder)


@pytest.mark.parametrize("name", MAKERS)
def test_bytes_at_random_never_end_in_a_traceback(name, tmp_path):
    folder, draw = MAKERS[name](tmp_path), np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for _ in range(20):
            body = bytearray(whole)
            for at in draw.integers(0, min(len(body), 600), 8):
                body[at] = int(draw.integers(256))
            file.write_bytes(bytes(body))
            try:
                open_sae(folder)
            except DemurError as error:
                assert len(str(error)) < 900
        file.write_bytes(whole)


def test_a_width_that_is_not_the_configs(tmp_path, monkeypatch, capsys):
    folder = saelens(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"d_in": 64}))
    refused(monkeypatch, capsys, folder, tmp_path, "W_enc has shape (48, 200); its config says (64, 200)")


def test_a_weight_that_is_missing_or_no_number(tmp_path):
    folder = saelens(tmp_path)
    whole = load_file(folder / "sae_weights.safetensors")
    save_file({n: w for n, w in whole.items() if n != "threshold"}, folder / "sae_weights.safetensors")
    with pytest.raises(FileError, match="holds no threshold"):
        open_sae(folder)
    whole["W_dec"][3, 5] = float("nan")
    save_file(whole, folder / "sae_weights.safetensors")
    with pytest.raises(FileError, match="W_dec holds values that are no numbers"):
        open_sae(folder)


@pytest.mark.parametrize(
    "body",
    [
        *("[]", "3", '{"d_in": "x"}', '{"d_in": 1e99, "d_sae": -1}', '{"architecture": {}}'),
        *('{"d_in": 1e999}', '{"d_in": NaN}', '{"architecture": "topk", "k": Infinity}', '{"d_in": 1%s}' % ("0" * 400)),
    ],
)
def test_configs_that_are_none(body, tmp_path):
    folder = saelens(tmp_path)
    (folder / "cfg.json").write_text(body)
    with pytest.raises(DemurError):
        open_sae(folder)


def test_a_folder_in_use_is_not_overwritten(tmp_path, monkeypatch, capsys):
    folder = saelens(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    refused(monkeypatch, capsys, folder, tmp_path, "not empty")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    from demur.sae.exchange import formats

    def full(sae, folder):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(formats.WRITERS, "demur", full)
    with pytest.raises(OSError, match="space"):
        formats.write(open_sae(saelens(tmp_path)), "demur", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lens"]
