"""`demur inspect`: any file or folder → what it is."""

from pathlib import Path
from typing import Any

from demur.data.registry import NAMES
from demur.data.sets import named_set
from demur.data.tables import SUFFIXES, load_table, parse_columns
from demur.errors import FileError
from demur.files import nearest, read_json
from demur.records import FeatureSet, Policy
from demur.runs import MANIFEST
from demur.sae.sae import CONFIG, SAE
from demur.steering.describe import in_words
from demur.verbs.find import features_table, held_out_table
from demur.verbs.output import drawn, show
from demur.verbs.sets import described


def inspect_verb(path: Path, *, columns: str = "", json: bool = False) -> None:
    """Say what a file is: an SAE, features, a policy, prompts (a file, or a set by name), a run.

    Examples
    --------
    demur inspect runs/find/features.json
    demur inspect policy.toml
    demur inspect prompts.csv --columns prompt=goal,label=is_bad

    Parameters
    ----------
    path
        A file or folder, or the name of a prompt set.
    columns
        Of a prompt file: which column is what, where its names are not the usual ones.
    json
        Print one JSON object, and nothing else.
    """
    if not path.exists() and str(path) in NAMES:
        body, text = described(named_set(str(path)))
    elif not path.exists():
        raise FileError(f"{path} does not exist{nearest(path)}")
    else:
        body, text = _read(path, parse_columns(columns))
    show(body, json, text)


def _read(path: Path, columns: dict[str, str]) -> tuple[dict[str, Any], str]:
    if (path / CONFIG).is_file():
        return _sae(path)
    if (path / MANIFEST).is_file():
        manifest = read_json(path / MANIFEST)
        return {"kind": "run"} | manifest, "\n".join(["a run", *(f"  {k}: {v}" for k, v in manifest.items())])
    if path.suffix == ".toml":
        policy = Policy.load(path)
        return {"kind": "policy", "hash": policy.hash} | policy.model_dump(mode="json"), "\n".join(in_words(policy))
    if path.suffix in SUFFIXES:
        return described(load_table(path, columns))
    if path.suffix == ".json":
        found = FeatureSet.load(path)
        tables = [features_table(found), *map(held_out_table, found.held_out)]
        return {"kind": "features"} | found.model_dump(mode="json"), "".join(map(drawn, tables)).rstrip()
    raise FileError(
        f"{path} is nothing that demur knows: expected an SAE or run folder, .toml, .json or a "
        f"prompt file ({', '.join(SUFFIXES)})."
    )


def _sae(path: Path) -> tuple[dict[str, Any], str]:
    sae = SAE.load(path)
    c = sae.config
    card = read_json(path / "card.json") if (path / "card.json").is_file() else {}
    lines = [f"an SAE: {c.d_sae} features, {c.rule} k = {c.k}, on {c.model} at {c.site} (d_model {c.d_model})"]
    lines += [f"  hash {sae.hash}, saved as {c.dtype}"]
    if quality := card.get("quality"):
        lines += [f"  {name}: {value:.4g}" for name, value in quality.items()]
    return {"kind": "sae", "hash": sae.hash, "card": card} | c.model_dump(mode="json"), "\n".join(lines)
