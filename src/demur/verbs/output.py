"""What a verb prints: one JSON object or readable text on stdout; remarks and progress go to stderr (`progress`)."""

import io
import json as jsonlib
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from demur.progress import console

if TYPE_CHECKING:
    from demur.models.load import ModelSettings

    DEFAULT_MODEL = ModelSettings()


def __getattr__(name: str) -> Any:
    # Verbs without a model (sets) print too, and need not wait for torch.
    if name == "DEFAULT_MODEL":
        from demur.models.load import ModelSettings

        return ModelSettings()
    raise AttributeError(name)


def show(result: dict[str, Any], json: bool, text: str) -> None:
    """The result: as one JSON object with `--json`, else as text."""
    sys.stdout.write((jsonlib.dumps(result, ensure_ascii=False) if json else text) + "\n")


def drawn(what: RenderableType) -> str:
    """A table or panel as plain text, as wide as the terminal but never too narrow to read."""
    buffer = io.StringIO()
    Console(file=buffer, width=max(console.width, 110), highlight=False).print(what)
    return buffer.getvalue()
