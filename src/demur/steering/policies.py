"""Policies by name: the built-in ones, and files; each with the SAE it was made for."""

import difflib
import math
import re
import tomllib
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from demur.errors import PolicyError
from demur.models.load import LanguageModel
from demur.records import Feature, FeatureSet, Policy
from demur.sae.exchange.formats import open_sae
from demur.sae.sae import SAE

_LEVEL = re.compile(r"(?P<base>.+):(?P<level>[a-z]+)(?P<kinds>(,\w+=[a-z]+)*)")
NONE = Policy(name="none", about="The plain model.")


def shipped() -> Path:
    """The folder of what the package ships for the embedded model: SAE, features, policies."""
    with as_file(files("demur.shipped")) as folder:
        return folder / "smollm2-135m"


def names() -> list[str]:
    """Names of the built-in policies."""
    return ["none", *sorted(p.stem for p in (shipped() / "policies").glob("*.toml"))]


def find_policy(name: str) -> Policy:
    """A built-in policy by its name, or a policy file by its path.

    `NAME@0.8` is that policy at 0.8 of its dose; `NAME:strict` at another of its levels, `NAME:standard,weapons=strict`
    with another for one kind of harm.

    Raises:
        PolicyError: neither, a dose that is no number, or a level or kind of harm that the policy does not have.
    """
    if "@" in name and not Path(name).is_file():
        base, _, dose = name.rpartition("@")
        try:
            if not math.isfinite(times := float(dose)):
                raise ValueError(dose)
            return find_policy(base).at_dose(times)
        except ValueError as error:
            raise PolicyError(f"policy {name!r}: {dose!r} is not a dose; write, for instance, {base}@0.8.") from error
    if (at := _LEVEL.fullmatch(name)) and not Path(name).is_file():
        return find_policy(at["base"]).at_level(at["level"], dict(kv.split("=") for kv in at["kinds"].split(",")[1:]))
    if name == "none":
        return NONE
    if Path(name).suffix == ".toml" or Path(name).is_file():
        return Policy.load(name)
    path = shipped() / "policies" / f"{name}.toml"
    if path.is_file():
        return Policy.load(path)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(names())}."
    raise PolicyError(f"no policy {name!r}: neither a built-in name nor a .toml file; {hint}")


def base_of(name: str) -> str:
    """The name or path of a policy that is given at a dose or level; its own where it is given at none."""
    while not Path(name).is_file() and ("@" in name or _LEVEL.fullmatch(name)):
        name = name.rpartition("@")[0] if "@" in name else _LEVEL.fullmatch(name)["base"]  # type: ignore[index]
    return name


def policy_files(name: str) -> list[Path]:
    """The files that `find_policy` reads for a name, those included and the vectors beside them too."""
    plain = base_of(name)
    path = Path(plain) if Path(plain).suffix == ".toml" else shipped() / "policies" / f"{plain}.toml"
    found: list[Path] = []
    while path not in found:
        found += [path, path.with_suffix(".safetensors")]
        try:
            other = tomllib.loads(path.read_text(encoding="utf-8")).get("include")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            break
        path = path.parent / other if isinstance(other, str) else path
    return [] if plain == "none" else found


def known_features(policy: Policy, files: Sequence[Path] = ()) -> dict[tuple[str, int], Feature]:
    """Features by site and id, for explaining a policy: those of the files, and the shipped ones, that are of its SAEs.

    Raises:
        FileError: a file that is no `features.json`.
    """
    found: dict[tuple[str, int], Feature] = {}
    for path in [*sorted(shipped().glob("features-*.json")), *files]:
        features = FeatureSet.load(path)
        if features.sae_hash in policy.saes.values():
            found |= {(features.site, f.id): f for f in features.features}
    return found


def load_saes(lm: LanguageModel, policies: Sequence[Policy], folders: Sequence[Path] = ()) -> dict[str, SAE]:
    """The SAEs that the policies need, by site: from the given folders, else the shipped one, as the model's precision.

    Raises:
        FileError, SAEError: a folder that holds no SAE, in any format that demur knows.
    """
    if not any(p.featured for p in policies):
        return {}
    like = next(lm.model.parameters())
    saes = [open_sae(f) for f in folders or [shipped() / "sae"]]
    return {sae.config.site: sae.to(like) for sae in saes}
