"""The base of every request a door can send: frozen, and refusing keys it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A request without parameters; others derive from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
