"""What holds for every test: no clock decides whether an example passes."""

from __future__ import annotations

from hypothesis import settings

# Hypothesis's default of 200 ms per example says more about a busy machine than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
