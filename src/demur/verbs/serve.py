"""`demur serve`: a policy → an OpenAI-compatible API."""

from json import dumps
from pathlib import Path
from shlex import split
from typing import Annotated, Literal, NoReturn

from cyclopts import Parameter

from demur.errors import SettingsError
from demur.models.load import ModelSettings, load
from demur.verbs.output import DEFAULT_MODEL, say

try:
    from demur.server.run import listening, permits, serve, serving_of
    from demur.server.settings import ServerSettings
except ModuleNotFoundError as error:  # the extra is not installed
    raise SettingsError(f"demur serve needs {error.name}; type `pip install 'demur[server]'`.") from error

DEFAULTS = ServerSettings()


def serve_verb(
    *,
    policy: Annotated[list[str], Parameter(negative="")] = ["gated"],  # noqa: B006 - never changed
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    engine: Literal["demur", "vllm"] = "demur",
    vllm: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    settings: Annotated[ServerSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
) -> None:
    """Serve a steered model under OpenAI's API, until Ctrl-C or SIGTERM.

    Examples
    --------
    demur serve --policy gated
    demur serve --policy gated --policy paper --port 8080 --rows 32
    demur serve --policy my.toml --host 0.0.0.0 --keys keys.toml --impact impact.toml
    demur serve --policy gated --engine vllm --vllm "--max-model-len 4096"

    Parameters
    ----------
    policy
        Policies by name or file, the usual one first; files are read again when they change.
    sae
        Folder of an SAE that the policies need, where it is not the shipped one.
    engine
        What writes the replies: demur's own engine, or vLLM and its server (docs/vllm.md).
    vllm
        More flags for `vllm serve`, in quotes.
    """
    permitted = permits(settings)
    if vllm and engine != "vllm":
        raise SettingsError(f"--vllm {vllm!r} is for vLLM's server; add --engine vllm, or leave it out.")
    at = listening(settings)
    host, port = at.getsockname()[:2]
    if engine == "vllm":
        at.close()
        _become_vllm(settings.model_copy(update={"port": port}), model, policy, sae, vllm)
    serving = serving_of(settings, load(model), policy, sae, permitted)
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"serving {', '.join(serving.offer.ids())} at {where}/v1; Ctrl-C ends.")
    body = {"model": serving.offer.pick(serving.offer.base).model, "messages": [{"role": "user", "content": "Hi"}]}
    say(f"next: curl {where}/v1/chat/completions -H 'Content-Type: application/json' -d '{dumps(body)}'")
    serve(serving, at)


def _become_vllm(
    settings: ServerSettings, model: ModelSettings, policies: list[str], folders: list[Path], more: str
) -> NoReturn:
    from demur.server.vllm.starting import check_installed, command, start

    check_installed()
    words, told, ids = command(settings, model, policies, folders)
    say(f"vLLM will serve {', '.join(ids)} at http://{settings.host}:{settings.port}/v1; Ctrl-C ends.")
    start([*words, *split(more)], told)
