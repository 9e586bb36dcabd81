"""A server over the tiny model, in this process."""

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest

from demur.server.app import create_app
from demur.server.impact import ImpactCard
from demur.server.run import serving_of
from demur.server.settings import ServerSettings
from tests import tiny
from tests.server.policies import four, late


class Kitchen:
    """Makes servers of policies that lie in a folder."""

    def __init__(self, folder) -> None:
        self.folder = folder
        for policy in (*four(), late()):
            saes = {site: tiny.saes()[site].hash for site in policy.featured}
            policy.model_copy(update={"saes": saes}).save(folder / f"{policy.name}.toml")
        for site, sae in tiny.saes().items():
            sae.save(folder / "saes" / site)

    def path(self, name: str) -> str:
        return name if name == "none" or ":" in name else str(self.folder / f"{name}.toml")

    def serving(self, *names, keys=None, card: ImpactCard | None = None, **settings):
        from demur.server.impact import LOCAL_CARD

        folders = [self.folder / "saes" / site for site in tiny.saes()]
        given = ServerSettings(**{"rows": 4, "queue": 8, "max_new_tokens": 64, **settings})
        sources = [self.path(n) for n in names or ("kinds", "always", "shut", "dense", "none")]
        return serving_of(given, tiny.lm(), sources, folders, (keys, card or LOCAL_CARD))

    @asynccontextmanager
    async def open(self, *names, **settings):
        """A client of a running server, and its parts as `client.serving`."""
        serving = self.serving(*names, **settings)
        app = create_app(serving)
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:
                client.serving = serving
                yield client


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path)


@pytest.fixture
def go():
    """Runs a coroutine to its end."""
    return asyncio.run


def asked(text: str = "Hi", model: str = "tiny-llama", **more) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}
