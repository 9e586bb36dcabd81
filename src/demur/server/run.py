"""A server from its settings: what is checked before anybody is served, and the process that serves."""

import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from demur.errors import SettingsError
from demur.models.load import LanguageModel
from demur.sae.sae import SAE
from demur.server.engine import Engine
from demur.server.impact import LOCAL_CARD, ImpactCard
from demur.server.keys import Keys
from demur.server.logs import set_up
from demur.server.offer import Offer
from demur.server.serving import Serving
from demur.server.settings import ServerSettings


def permits(settings: ServerSettings) -> tuple[Keys | None, ImpactCard]:
    """The keys and the impact card, which others than this machine's users may not be served without.

    Raises:
        SettingsError: they are needed and not given, or not filled in.
        FileError: a file that is missing or not TOML.
    """
    if not settings.is_local and (settings.keys is None or settings.impact is None):
        lacking = " and ".join(f"--{name}" for name in ("keys", "impact") if getattr(settings, name) is None)
        raise SettingsError(
            f"--host {settings.host} lets others in, which takes keys and an impact card ({lacking} not given); "
            "see docs/serving.md, or leave --host out to serve this machine alone."
        )
    keys = Keys.load(settings.keys) if settings.keys else None
    return keys, ImpactCard.load(settings.impact) if settings.impact else LOCAL_CARD


def listening(settings: ServerSettings) -> socket.socket:
    """A socket on the address.

    Raises:
        SettingsError: somebody else listens there, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
    except OSError as error:
        made.close()
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); "
            "end what listens there, or give another --port (0 takes any)."
        ) from error
    return made


def serving_of(
    settings: ServerSettings,
    lm: LanguageModel,
    policies: Sequence[str],
    folders: Sequence[Path] = (),
    permitted: tuple[Keys | None, ImpactCard] | None = None,
    threads: int | None = None,
) -> Serving:
    """A server's parts, none of them at work yet; `threads` as `Engine` takes it.

    Raises:
        DemurError: a policy that cannot be used with the model; keys or card as in `permits`.
    """
    keys, card = permitted or permits(settings)
    saes: dict[str, SAE] = {}
    offer = Offer(lm, saes, policies, card, folders)
    engine = Engine(lm, saes, settings.rows, settings.queue, threads)
    return Serving(settings, lm, engine, offer, keys, card)


def serve(app: FastAPI, at: socket.socket) -> None:
    """Serves an app until SIGTERM or Ctrl-C; what is under way then is given `drain` seconds to end."""
    set_up()
    serving: Serving = app.state.serving
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(serving.settings.drain),
        server_header=False,
        lifespan="on",
    )
    # uvicorn sends itself the signal again once it has ended in good order; by then nothing is left to be ended.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    uvicorn.Server(config).run(sockets=[at])
