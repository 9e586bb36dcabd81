"""Answers under policies that nobody offers, written by the server's own engine beside everybody else's."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from demur.errors import DemurError, EndpointError
from demur.models.chat import tokens_and_roles
from demur.records import Message, Policy
from demur.server.engine import BusyError, Ended, Event, Failed, Job, StoppedError
from demur.server.sampling import Sampling
from demur.server.serving import Serving

LENGTH = 96
"""Longest reply, in tokens."""
STOPPED = "the server is shutting down; load the page again later."
FAILED = "the reply could not be written; the server's log says why."


async def written(
    serving: Serving, messages: Sequence[Message], policies: Sequence[Policy]
) -> AsyncIterator[tuple[int, str]]:
    """The number of the policy and its whole reply so far, each time there is more of it.

    Raises:
        EndpointError: the engine has no room, or has stopped.
        PromptError: the conversation does not fit the context.
        PolicyError, SAEError: a policy that does not fit the model.
    """
    prompt = await serving.aside(lambda: tokens_and_roles(serving.lm, messages))
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def deliver(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    how = Sampling(max_new_tokens=LENGTH)
    jobs = [Job(prompt, policy, how, deliver, choice=i, stream=True) for i, policy in enumerate(policies)]
    try:
        serving.engine.submit(jobs)
    except BusyError as error:
        raise EndpointError(f"the model is busy: {error}") from error
    except StoppedError as error:
        raise EndpointError(STOPPED) from error
    said, left = [""] * len(jobs), len(jobs)
    try:
        while left:
            event = await events.get()
            if isinstance(event, Failed):
                if isinstance(event.error, DemurError):
                    raise event.error
                stopped = isinstance(event.error, StoppedError)
                raise EndpointError(STOPPED if stopped else FAILED) from event.error
            left -= isinstance(event, Ended)
            said[event.choice] = event.text if isinstance(event, Ended) else said[event.choice] + event.text
            yield event.choice, said[event.choice]
    finally:
        serving.engine.cancel(jobs)
