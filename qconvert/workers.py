"""What this process may use, and what it gives back."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event


def default_workers() -> int:
    """How many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def release_memory() -> None:
    """Gives freed memory back to the system, where the C library can: copies of a model's weights linger otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def collect_rarely() -> None:
    """Lets the collector look for cycles less often: imports and graphs are many objects of which none is garbage.

    Measured: 0.2 of 1.5 CPU seconds of what ``calibrate`` imports. Where a graph with its weights is dropped,
    collections are asked for by name.
    """
    gc.set_threshold(100_000, 20, 20)


def run_workers(count: int, work: Callable[[], None], stop: Event) -> None:
    """Runs ``work`` in ``count`` threads at once and raises the first error.

    Sets ``stop`` at the end, so that work can end early. Few long tasks, not one a sample: Ctrl-C while thousands are
    being submitted can leave a lock of the pool locked for ever.
    """
    with ThreadPoolExecutor(count) as pool:
        try:  # from here on: Ctrl-C while the second thread starts must stop the first
            running = {pool.submit(work) for _ in range(count)}
            while running:  # wakes up now and then: Ctrl-C may reach another thread, and is raised only in this one
                finished, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
        finally:
            stop.set()
