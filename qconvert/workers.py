"""How many things can go on at once."""

from __future__ import annotations

import os


def default_workers() -> int:
    """How many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
