"""The key-value cache of rows that come and go: one block of memory, written in place.

All rows end in the same column, so that a step writes one column of every row; a row begins where its length says. What
lies before is masked. transformers' own cache copies itself whole at every token.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

ROOM = 256
"""Columns that are free after a move, so that the next one is that many tokens away."""


class Layer(CacheLayerMixin):
    """One layer's keys and values, `[rows, heads, columns, d_head]`; transformers sees those of the rows in use."""

    is_sliding = False

    def __init__(self, window: "Window") -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: rows are brought in by `Window.join`."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Float[Tensor, "rows heads columns d_head"], Float[Tensor, "rows heads columns d_head"]]:
        """Writes the tokens of one step; gives all that is to be attended to."""
        at, n = self.window, len(key_states)
        end = at.end + key_states.shape[2]
        assert self.keys is not None and self.values is not None
        self.keys[:n, :, at.end : end] = key_states
        self.values[:n, :, at.end : end] = value_states
        return self.keys[:n, :, at.start : end], self.values[:n, :, at.start : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns there will be, and that none was dropped."""
        return self.window.end - self.window.start + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.window.end - self.window.start

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


class Window(Cache):
    """The layers, and which columns are in use."""

    def __init__(self, rows: int) -> None:
        self.room = rows
        """Most rows."""
        self.lengths: list[int] = []
        """Tokens of each row in use, in order."""
        self.end = self.capacity = 0
        self.layers: list[Any]
        super().__init__(layers=[])

    @property
    def start(self) -> int:
        """The first column that some row has a token in."""
        return self.end - max(self.lengths, default=0)

    def join(self, prefilled: Cache, lengths: list[int]) -> None:
        """Rows behind those in use, from the cache of a pass over their prompts, padded on the left."""
        before, longest = len(self.lengths), max(lengths)
        if not self.capacity:
            self._allocate(prefilled, longest + ROOM)
        if not before and longest <= self.capacity:
            self.end = longest
        elif self.end < longest:
            self._move(longest)
        read: list[Any] = list(prefilled.layers)
        for layer, new in zip(self.layers, read, strict=True):
            for buffer, states in ((layer.keys, new.keys), (layer.values, new.values)):
                assert buffer is not None and states is not None
                for i, length in enumerate(lengths, before):
                    buffer[i, :, self.end - length : self.end] = states[i - before, :, states.shape[2] - length :]
        self.lengths += lengths

    def step(self) -> None:
        """A column was written."""
        self.end += 1
        self.lengths = [n + 1 for n in self.lengths]

    def prepare(self) -> None:
        """Makes room for a column."""
        if self.end == self.capacity:
            self._move(self.end - self.start)

    def leave(self, row: int) -> None:
        """Takes a row out; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            columns = slice(self.end - self.lengths[last], self.end)
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    assert buffer is not None
                    buffer[row, :, columns] = buffer[last, :, columns]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _move(self, end: int) -> None:
        # What is in use then ends at column `end`, with room behind it.
        wide, capacity = self.end - self.start, end + ROOM
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                if old is not None:
                    new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                    new[: len(self.lengths), :, end - wide : end] = old[: len(self.lengths), :, self.start : self.end]
                    setattr(layer, name, new)
        self.end, self.capacity = end, capacity

    def _allocate(self, like: Cache, columns: int) -> None:
        self.layers = [Layer(self) for _ in like.layers]
        for layer, given in zip(self.layers, like.layers, strict=True):
            for name in ("keys", "values"):
                states = getattr(given, name)
                # Zeros, since what is masked is multiplied by nothing but has to be a number.
                setattr(layer, name, states.new_zeros(self.room, states.shape[1], columns, states.shape[3]))
            layer.is_initialized = True
        self.capacity = columns
