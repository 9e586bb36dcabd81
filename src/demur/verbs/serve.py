"""`demur serve`: a policy → an OpenAI-compatible API, a page, and what becomes of refusals."""

from pathlib import Path
from shlex import split
from typing import Annotated, Literal, NoReturn

from cyclopts import Parameter

from demur.errors import FileError, SettingsError
from demur.models.load import ModelSettings
from demur.progress import say
from demur.verbs.output import DEFAULT_MODEL

MISSING = "demur serve needs {}; type `pip install 'demur[server]'`."

try:
    from demur.server.run import listening, permits
    from demur.server.settings import ServerSettings
except ModuleNotFoundError as error:  # the extra is not installed
    raise SettingsError(MISSING.format(error.name)) from error

DEFAULTS = ServerSettings()


def serve_verb(
    *,
    policy: Annotated[list[str], Parameter(negative="")] = ["gated"],  # noqa: B006 - never changed
    sae: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
    engine: Literal["demur", "vllm"] = "demur",
    vllm: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    settings: Annotated[ServerSettings, Parameter(name="*")] = DEFAULTS,
    model: Annotated[ModelSettings, Parameter(name="*")] = DEFAULT_MODEL,
    store: str = "",
    page: bool = True,
    runs: Path | None = None,
    features: Annotated[list[Path], Parameter(negative="")] = [],  # noqa: B006
) -> None:
    """Serve a steered model under OpenAI's API, with a page for people at the same address, until Ctrl-C or SIGTERM.

    Examples
    --------
    demur serve --policy gated
    demur serve --policy gated --policy paper --port 8080 --rows 32
    demur serve --runs runs --store postgresql://demur@localhost/demur
    demur serve --policy my.toml --host 0.0.0.0 --keys keys.toml --impact impact.toml
    demur serve --policy gated --engine vllm --vllm "--max-model-len 4096"

    Parameters
    ----------
    policy
        Policies by name or file, the usual one first; files are read again when they change.
    sae
        Folder of an SAE that the policies need, where it is not the shipped one.
    store
        Where refused answers, appeals and feedback are kept: a file, or postgresql://USER@HOST/NAME; by default
        DEMUR_STORE, else the user's own.
    page
        Serve the page too.
    runs
        A run of `demur evaluate`, or a folder of runs, whose trade-off the page shows.
    features
        What `demur find` wrote, for the page to browse; by default what is known of the policies' SAE.
    engine
        What writes the replies: demur's own engine, or vLLM and its server (docs/vllm.md).
    vllm
        More flags for `vllm serve`, in quotes.
    """
    if page and runs is not None and not runs.is_dir():
        raise FileError(f"there are no runs at {runs}; give a folder that `demur evaluate` wrote, or leave --runs out.")
    permitted = permits(settings)
    if vllm and engine != "vllm":
        raise SettingsError(f"--vllm {vllm!r} is for vLLM's server; add --engine vllm, or leave it out.")
    if engine == "vllm" and (store or runs or features):
        raise SettingsError(
            "--store, --runs and --features are for demur's own engine; leave them out, or leave --engine vllm out."
        )
    at = listening(settings)
    if engine == "vllm":
        port = at.getsockname()[1]
        at.close()
        _become_vllm(settings.model_copy(update={"port": port}), model, policy, sae, vllm)
    try:
        # vLLM's own environment has none of what the store and the page are made of.
        from demur.verbs.serve_here import serve_here
    except ModuleNotFoundError as error:
        at.close()
        raise SettingsError(MISSING.format(error.name)) from error
    serve_here(settings, model, policy, sae, permitted, at, store, page, runs, features)


def _become_vllm(
    settings: ServerSettings, model: ModelSettings, policies: list[str], folders: list[Path], more: str
) -> NoReturn:
    from demur.server.vllm.starting import check_installed, command, start

    check_installed()
    words, told, ids = command(settings, model, policies, folders)
    say(f"vLLM will serve {', '.join(ids)} at http://{settings.host}:{settings.port}/v1; Ctrl-C ends.")
    start([*words, *split(more)], told)
