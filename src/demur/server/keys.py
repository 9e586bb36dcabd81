"""Who may do what: keys with roles, kept as hashes in a file.

[[keys]]
name = "support-desk"
role = "user"        # user: ask, give feedback, appeal; reviewer: also the queue; operator: also everything else
sha256 = "…"         # printf %s "$KEY" | sha256sum
"""

import hashlib
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from demur.errors import FileError, SettingsError
from demur.files import read_text
from demur.records.record import Record, parse
from demur.server.problems import ApiError

Role = Literal["user", "reviewer", "operator"]
ROLES: tuple[Role, ...] = ("user", "reviewer", "operator")
"""Each may do what those before it may."""

_bearer = HTTPBearer(auto_error=False, description="A key of the server's keys file; none is needed on loopback.")


class Key(Record):
    """One key."""

    name: str = Field(min_length=1)
    """Who has it; what logs, limits and reviews name."""
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key itself, in hexadecimal; the key is nowhere kept."""


class Caller(Record):
    """Who sent a request."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether what takes this role is theirs to do."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL = Caller(name="local", role="operator")
"""Whoever calls a server without keys: it listens on this machine alone."""


class Keys(Record):
    """The keys that a server takes."""

    keys: tuple[Key, ...] = Field(min_length=1)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a keys file (TOML).

        Raises:
            FileError: no such file or not TOML.
            SettingsError: no key, a role that is none, what is no hash, or one name or key twice.
        """
        try:
            raw = tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise FileError(
                f"{path} is not a TOML file ({error}); give one with [[keys]]: name, role, sha256."
            ) from error
        found = parse(cls, raw, path, SettingsError)
        for what in ("name", "sha256"):
            if len({getattr(k, what) for k in found.keys}) < len(found.keys):
                raise SettingsError(f"{path}: two keys have the same {what}; give each its own.")
        return found

    def caller(self, key: str) -> Caller | None:
        """Whose key it is."""
        digest = hashlib.sha256(key.encode()).hexdigest()
        return next((Caller(name=k.name, role=k.role) for k in self.keys if k.sha256 == digest), None)


def admitted(keys: Keys | None, key: str, role: Role) -> Caller:
    """Who sends this key (empty: none), if they may do what takes this role.

    Raises:
        ApiError: 401 without a key that is known, 403 with one of a lesser role.
    """
    caller = LOCAL if keys is None else keys.caller(key) if key else None
    if caller is None:
        told = "this key is not known" if key else "there is no key in the request"
        raise ApiError(
            401,
            f"{told}; send `Authorization: Bearer KEY` with one that the operator gave you.",
            "invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    if not caller.may(role):
        raise ApiError(403, f"this takes the role {role}; the key {caller.name} has {caller.role}.", "wrong_role")
    return caller


def require(role: Role) -> Callable[..., Awaitable[Caller]]:
    """A FastAPI dependency that gives the caller, if they are `admitted`."""

    async def caller(
        request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> Caller:
        found = admitted(request.app.state.keys, given.credentials if given else "", role)
        request.state.caller = found
        return found

    return caller
