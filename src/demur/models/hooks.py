"""The only hooks in the project.

A block is watched by one dispatcher, however many callers there are. The dispatcher asks a ContextVar who is calling,
so that two sessions in two threads never meet, and it leaves the model when the last caller does - after success,
failure or Ctrl-C alike.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Handler: TypeAlias = Callable[[Tensor], Tensor | None]
"""Gets a block's output, `[batch, seq, d_model]`; returns what should take its place, or None to leave it as it is."""

_handlers: ContextVar[tuple[Mapping[nn.Module, Handler], ...]] = ContextVar("demur_handlers", default=())
_lock = threading.Lock()
_watched: dict[nn.Module, tuple[RemovableHandle, int]] = {}


class Halt(BaseException):
    """Raised by a handler that has what it came for; `halted` catches it. Not an Exception: no library should."""


@contextmanager
def at_blocks(handlers: Mapping[nn.Module, Handler]) -> Iterator[None]:
    """Within the block, and in this thread alone, each module's output passes through its handler."""
    for module in handlers:
        _watch(module)
    token = _handlers.set((*_handlers.get(), handlers))
    try:
        yield
    finally:
        _handlers.reset(token)
        for module in handlers:
            _unwatch(module)


@contextmanager
def halted() -> Iterator[None]:
    """Ends quietly when a handler raises `Halt`: what lies behind that block was not wanted."""
    with suppress(Halt):
        yield


def for_good(module: nn.Module, handler: Callable[[Any], Any]) -> None:
    """Whatever the module returns passes through a handler from now on, in every thread; None leaves it as it is.

    For a model that belongs to one server alone: what is compiled once sees no hooks that come and go.
    """
    module.register_forward_hook(lambda _module, _args, output: handler(output))


def contiguous(module: nn.Module) -> None:
    """What the module is given lies in one piece from now on; a product with a slice may copy its weights once a row."""
    module.register_forward_pre_hook(lambda _module, given: (given[0].contiguous(), *given[1:]))


def _dispatch(module: nn.Module, _args: Any, output: Any) -> Any:
    # Most blocks return the hidden states, some a tuple that begins with them.
    hidden = before = output[0] if isinstance(output, tuple) else output
    for handlers in _handlers.get():
        if module in handlers:
            edited = handlers[module](hidden)
            hidden = hidden if edited is None else edited
    if hidden is before:
        return None
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _watch(module: nn.Module) -> None:
    with _lock:
        handle, callers = _watched.get(module, (None, 0))
        _watched[module] = (handle or module.register_forward_hook(_dispatch), callers + 1)


def _unwatch(module: nn.Module) -> None:
    with _lock:
        handle, callers = _watched.pop(module)
        if callers > 1:
            _watched[module] = (handle, callers - 1)
        else:
            handle.remove()
