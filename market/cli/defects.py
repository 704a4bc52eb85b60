"""What is left of a defect when it reaches the command line: a message, and a file for whoever mends it.

Guarantees that nobody is shown a traceback, and that none is lost. Refuses to know what went wrong.
"""

from __future__ import annotations

import os
import tempfile
import traceback

from market.errors import Problem


class Defect(Problem):
    """A fault of this program's own."""

    kind = "internal-fault"


def recorded(fault: BaseException) -> Defect:
    """The problem to show; its traceback is in a new file that only this user can read."""
    what = f"internal fault: {type(fault).__name__}: {str(fault)[:200]}"
    try:
        handle, path = tempfile.mkstemp(prefix="archy-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.writelines(traceback.format_exception(fault))
    except OSError as error:
        return Defect(what, remedy=f"please report it; its traceback could not be written ({error.strerror})")
    return Defect(
        what, where=path, remedy="please report it with that file; read it first, for messages can quote your data"
    )
