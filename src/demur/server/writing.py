"""A reply's text as its tokens come: where it stops, and what of it may be sent already."""

from typing import Any

BROKEN = "�"
"""What a decoder writes for a character of which not all bytes have come."""


class Writing:
    """One reply. What is sent piece by piece is, put together, the text of the whole."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], strip: bool) -> None:
        self.tokenizer, self.stop, self.strip = tokenizer, stop, strip
        self.tokens: list[int] = []
        self.sent = ""
        self._text = ""
        self._begin = self._read = 0
        self._cut: int | None = None

    def take(self, token: int, look: bool) -> bool:
        """Takes a token; with `look`, reads it at once. Says whether the reply stops there."""
        self.tokens.append(token)
        if look or self.stop:
            self._read_to(len(self.tokens))
        return self._cut is not None

    def ready(self, tokens: int | None = None) -> str:
        """The text that can be sent now and was not yet; with `tokens`, of the first so many alone."""
        if tokens is None:
            # The beginning of what might become a stop text stays here.
            text = self._text[: max(0, len(self._text) - max(map(len, self.stop), default=1) + 1)]
        else:
            text = self._decoded(self.tokens[:tokens]).rstrip(BROKEN)
            text = text[: max(0, len(text) - max(map(len, self.stop), default=1) + 1)]
        return self._new(text if self._cut is None else text[: self._cut])

    def whole(self, tokens: int | None = None) -> str:
        """The reply's text; with `tokens`, of the first so many."""
        text = self._decoded(self.tokens[:tokens]) if self._cut is None else self._text[: self._cut]
        return text.strip() if self.strip else text

    def rest(self, whole: str) -> str:
        """What of the whole was not sent."""
        return whole[len(self.sent) :]

    def _new(self, text: str) -> str:
        text = text.strip() if self.strip else text
        if len(text) <= len(self.sent):
            return ""
        new = text[len(self.sent) :]
        self.sent = text
        return new

    def _read_to(self, end: int) -> None:
        # Only the last few tokens are decoded; those before them are there because a token's text depends on them.
        before, now = (
            self._decoded(self.tokens[self._begin : self._read]),
            self._decoded(self.tokens[self._begin : end]),
        )
        if len(now) <= len(before) or now.endswith(BROKEN):
            return
        known = len(self._text)
        self._text += now[len(before) :]
        self._begin, self._read = self._read, end
        found = [self._text.find(s, max(0, known - len(s) + 1)) for s in self.stop]
        found = [at for at in found if at >= 0]
        if found and self._cut is None:
            self._cut = min(found)

    def _decoded(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)
