"""How the server is run."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from demur.config import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServerSettings(Settings):
    """Where the server listens, for whom, and how much it takes."""

    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs `keys` and `impact`."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free one."""
    keys: Path | None = None
    """TOML file of keys: name, role (user, reviewer, operator) and sha256 of each."""
    impact: Path | None = None
    """TOML file that says who uses the server, which hazards at which level, who reviews appeals, how long text is kept."""
    rows: int = Field(default=16, gt=0)
    """Choices that are written at the same time."""
    queue: int = Field(default=64, ge=0)
    """Choices that may wait for a row; beyond, 429."""
    max_new_tokens: int = Field(default=1024, gt=0)
    """Longest reply that may be asked for, in tokens."""
    usual_tokens: int = Field(default=256, gt=0)
    """Longest chat reply where a request names none, in tokens; bare text has 16, as at OpenAI."""
    max_body: int = Field(default=1_048_576, gt=0)
    """Largest request, in bytes."""
    max_choices: int = Field(default=8, gt=0)
    """Most choices (`n` times prompts) of one request."""
    rate: int = Field(default=0, ge=0)
    """Requests a minute for each key; 0: no limit."""
    timeout: float = Field(default=600.0, gt=0)
    """Longest time for an answer, waiting included, in seconds."""
    drain: float = Field(default=30.0, ge=0)
    """After SIGTERM, seconds that answers under way are given to end."""
    on_late: Literal["steer", "stop"] = "steer"
    """When the gate on the reply opens: go on under the policy, or end the reply before what is held back."""
    log_text: bool = False
    """Put prompts and replies into the log."""

    @property
    def is_local(self) -> bool:
        """Whether nobody outside this machine can reach it."""
        return self.host in LOOPBACK
