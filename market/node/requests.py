"""The base of every request a door can send: frozen, and refusing keys it does not know."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

DIGEST_TEXT: Final = r"^[0-9a-f]{64}$"


class Request(BaseModel):
    """A request without parameters; others derive from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
