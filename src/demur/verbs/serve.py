"""`demur serve`: a policy → an OpenAI-compatible API, a page, and what becomes of refusals."""

from json import dumps
from pathlib import Path
from shlex import split
from typing import Annotated, Literal, NoReturn

from cyclopts import Parameter

from demur.errors import FileError, SettingsError
from demur.models.load import ModelSettings, load
from demur.records import FeatureSet
from demur.steering.policies import shipped
from demur.verbs.output import DEFAULT_MODEL, say

try:
    from demur.server.app import create_app
    from demur.server.feedback.database import usual_place
    from demur.server.feedback.routes import feedback_router, keeping
    from demur.server.feedback.store import Store
    from demur.server.page.desk import Desk
    from demur.server.page.mount import add_page
    from demur.server.run import listening, permits, serve, serving_of
    from demur.server.serving import Serving
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
    kept = Store.open(store or usual_place())
    days = serving.card.retention_days
    serving.listeners.append(keeping(kept, days))
    app = create_app(serving, [feedback_router(kept, days)])
    if page:
        add_page(app, Desk(serving, kept, _known(serving, features), runs))
        say(f"page: {where}/")
    serve(app, at)


def _known(serving: Serving, given: list[Path]) -> list[FeatureSet]:
    if given:
        return [FeatureSet.load(path) for path in given]
    used = {h for entry in serving.offer.entries.values() for h in entry.policy.saes.values()}
    found = [FeatureSet.load(path) for path in sorted(shipped().glob("features-*.json"))]
    return [f for f in found if f.sae_hash in used]


def _become_vllm(
    settings: ServerSettings, model: ModelSettings, policies: list[str], folders: list[Path], more: str
) -> NoReturn:
    from demur.server.vllm.starting import check_installed, command, start

    check_installed()
    words, told, ids = command(settings, model, policies, folders)
    say(f"vLLM will serve {', '.join(ids)} at http://{settings.host}:{settings.port}/v1; Ctrl-C ends.")
    start([*words, *split(more)], told)
