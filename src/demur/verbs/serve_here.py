"""`demur serve` with our own engine: the API, the store of refusals and appeals, the page, in one process."""

from json import dumps
from pathlib import Path
from socket import socket

import torch

from demur.models.load import ModelSettings, load
from demur.progress import say
from demur.records import FeatureSet
from demur.server.app import create_app
from demur.server.feedback.database import usual_place
from demur.server.feedback.routes import feedback_router, keeping
from demur.server.feedback.store import Store
from demur.server.impact import ImpactCard
from demur.server.keys import Keys
from demur.server.page.desk import Desk
from demur.server.page.mount import add_page
from demur.server.run import serve, serving_of
from demur.server.serving import Serving
from demur.server.settings import ServerSettings
from demur.steering.policies import shipped


def serve_here(
    settings: ServerSettings,
    model: ModelSettings,
    policies: list[str],
    folders: list[Path],
    permitted: tuple[Keys | None, ImpactCard],
    at: socket,
    store: str,
    page: bool,
    runs: Path | None,
    features: list[Path],
) -> None:
    """Serves until it is told to end; the arguments are those of `serve_verb`, `at` the address it listens at."""
    host, port = at.getsockname()[:2]
    # OpenMP keeps a team for each thread that computes. With one here and one for the engine there are more threads than
    # cores, and libgomp lets them sleep between any two operations: every token takes a fifth longer.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serving = serving_of(settings, load(model), policies, folders, permitted, threads)
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
