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
from demur.sae.exchange.foreign import Foreign, even, norms_of
from demur.sae.exchange.formats import DEMUR, format_of, open_sae, read_foreign
from demur.steering.describe import described as described_sensor
from demur.steering.describe import in_words
from demur.steering.policies import base_of, find_policy, names
from demur.verbs.find import features_table, held_out_table
from demur.verbs.found import found_tables
from demur.verbs.output import drawn, show
from demur.verbs.sets import described


def inspect_verb(path: Path, *, columns: str = "", json: bool = False) -> None:
    """Say what a file is: an SAE, features, a policy or prompts (these two by name, too), a run.

    Examples
    --------
    demur inspect runs/find/features.json
    demur inspect policy.toml
    demur inspect gated:strict
    demur inspect prompts.csv --columns prompt=goal,label=is_bad

    Parameters
    ----------
    path
        A file or folder, or the name of a prompt set or of a policy (with a level or a dose, if you like).
    columns
        Of a prompt file: which column is what, where its names are not the usual ones.
    json
        Print one JSON object, and nothing else.
    """
    if not path.exists() and str(path) in NAMES:
        body, text = described(named_set(str(path)))
    elif not path.exists() and (
        (base := base_of(str(path))) in names() or (base != str(path) and Path(base).is_file())
    ):
        body, text = _policy(find_policy(str(path)))
    elif not path.exists():
        raise FileError(f"{path} does not exist{nearest(path)}")
    else:
        body, text = _read(path, parse_columns(columns))
    show(body, json, text)


def _read(path: Path, columns: dict[str, str]) -> tuple[dict[str, Any], str]:
    if (known := format_of(path)) is not None:
        return _sae(path) if known[0] == DEMUR else _foreign(read_foreign(path))
    if (path / MANIFEST).is_file():
        manifest = read_json(path / MANIFEST)
        return {"kind": "run"} | manifest, "\n".join(["a run", *(f"  {k}: {v}" for k, v in manifest.items())])
    if path.suffix == ".toml":
        return _policy(Policy.load(path))
    if path.suffix in SUFFIXES:
        return described(load_table(path, columns))
    if path.suffix == ".json":
        found = FeatureSet.load(path)
        tables = [features_table(found), *found_tables(found), *map(held_out_table, found.held_out)]
        text = "".join(map(drawn, tables)).rstrip()
        if found.sensor is not None:
            text += f"\nharm is read by {described_sensor(found.sensor)}"
            text += f"; {len(found.kinds)} kinds are told apart" if found.kinds else ""
        return {"kind": "features"} | found.model_dump(mode="json"), text
    raise FileError(
        f"{path} is nothing that demur knows: expected an SAE or run folder, .toml, .json or a "
        f"prompt file ({', '.join(SUFFIXES)})."
    )


def _policy(policy: Policy) -> tuple[dict[str, Any], str]:
    return {"kind": "policy", "hash": policy.hash} | policy.model_dump(mode="json"), "\n".join(in_words(policy))


def _sae(path: Path) -> tuple[dict[str, Any], str]:
    sae = open_sae(path)
    c, folder = sae.config, path if path.is_dir() else path.parent
    card = read_json(folder / "card.json") if (folder / "card.json").is_file() else {}
    lines = [f"an SAE: {c.d_sae} features, {_rule(c.rule, c.k)}, on {c.model} at {c.site} (d_model {c.d_model})"]
    lines += [f"  hash {sae.hash}, saved as {c.dtype}"]
    if quality := card.get("quality"):
        lines += [f"  {name}: {value:.4g}" for name, value in quality.items()]
    body = {"kind": "sae", "format": DEMUR, "hash": sae.hash, "card": card}
    return body | c.model_dump(mode="json"), "\n".join(lines)


def _rule(rule: str, k: int | None) -> str:
    return rule if k is None else f"{rule} k = {k}"


def _foreign(theirs: Foreign) -> tuple[dict[str, Any], str]:
    theirs.checked()
    d_sae, d_model = theirs.weights["W_dec"].shape
    norms = norms_of(theirs.weights["W_dec"])
    stated = {"site": theirs.site, "place": theirs.place or None, "model": theirs.model or None}
    body = {"kind": "sae", "format": theirs.format, "architecture": theirs.kind, "d_model": d_model, "d_sae": d_sae}
    body |= {"rule": theirs.rule, "k": theirs.k, **stated, "decoder_norms": [float(norms.min()), float(norms.max())]}
    lines = [
        f"an SAE of {theirs.format} ({theirs.kind}): {d_sae} features, {_rule(theirs.rule, theirs.k)}, on "
        f"{theirs.model or 'a model not stated'} at {theirs.site or theirs.place or 'a place not stated'} "
        f"(d_model {d_model})",
        f"  decoder rows of norm {norms.min():.4g} to {norms.max():.4g}; "
        + ("the decoder's bias is taken off the input" if theirs.centred else "the input keeps the decoder's bias")
        + (f"; the input is scaled by {theirs.scale:.4g}" if theirs.scale != 1 else ""),
    ]
    if theirs.rule == "topk" and not theirs.by_norm and not even(norms, 0.01):
        lines.append("  its activations stay in units of its own: with rows made of norm 1, others would be the top k")
    if theirs.site is None:
        lines.append(f"next: demur convert {theirs.path} --site 14.resid_post --out DIR (name the block it belongs to)")
    else:
        body["hash"] = theirs.sae().hash
        lines.append(f"  hash {body['hash']}, as demur opens it")
        lines.append(f"next: demur find --sae {theirs.path}")
    return body, "\n".join(lines)
