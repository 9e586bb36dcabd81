"""What the routes work with; they find it as `request.app.state.serving`."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from demur.models.load import LanguageModel
from demur.server.answers import Answered, Listener
from demur.server.engine import Engine
from demur.server.impact import LOCAL_CARD, ImpactCard
from demur.server.keys import Keys
from demur.server.metrics import Metrics
from demur.server.offer import Offer
from demur.server.settings import ServerSettings

log = logging.getLogger("demur.server")
T = TypeVar("T")


@dataclass
class Serving:
    """One server's parts."""

    settings: ServerSettings
    lm: LanguageModel
    engine: Engine
    offer: Offer
    keys: Keys | None = None
    card: ImpactCard = LOCAL_CARD
    listeners: list[Listener] = field(default_factory=list)
    """Hear of every finished answer; what keeps answers for appeals is one."""

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.offer)
        # One thread, apart from the one that answers: a long prompt takes a while, and tokenizers are not for many.
        self.tokenizing = ThreadPoolExecutor(1, "demur-tokens")

    async def aside(self, work: Callable[[], T]) -> T:
        """Does work with the tokenizer without keeping others waiting."""
        return await asyncio.get_running_loop().run_in_executor(self.tokenizing, work)

    async def tell(self, answered: Answered) -> None:
        """Tells everybody who wants to know of an answer."""
        for listener in self.listeners:
            try:
                await listener(answered)
            except Exception:
                log.exception("a listener failed on the answer %s", answered.id)
