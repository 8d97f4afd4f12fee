"""Coordinate descent on levels: one input at a time takes the level that is best while the others stay.

Source: Behdin et al. 2023, "QuantEase", arXiv:2309.01885; Zhang et al. 2024, "COMQ", arXiv:2403.07134. It never raises
the error, and ends where no single level can be changed for the better.
"""

from __future__ import annotations

import numpy as np

from qconvert.recover.rows import Floats, Lattice

BLOCK = 128
"""Inputs whose changes are gathered before the rest of the rows hears of them."""


def descend(levels: Floats, target: Floats, lattice: Lattice, gram: Floats, *, sweeps: int) -> Floats:
    """Levels with at most the error ``e G e^T``, ``e = scale * levels - target``, of those that are given.

    Args:
        levels: Where to start, ``[G, O, K]``.
        target: What the reals should be.
        lattice: What they may be.
        gram: ``[G, K, K]``.
        sweeps: How often each input is looked at, at most.
    """
    levels, inputs = levels.copy(), levels.shape[2]
    slope = (lattice.reals(levels) - target) @ gram
    for _ in range(sweeps):
        before = levels.copy()
        for start in range(0, inputs, BLOCK):
            part = slice(start, min(start + BLOCK, inputs))
            near, changes = slope[:, :, part].copy(), lattice.reals(levels)[:, :, part]
            for i in range(near.shape[2]):
                at, scale = start + i, lattice.scale[:, :, start + i]
                wish = levels[:, :, at] - near[:, :, i] / (gram[:, at, at, None] * scale)
                found = np.clip(np.rint(wish), lattice.first[:, :, at], lattice.last[:, :, at])
                change = scale * (found - levels[:, :, at])
                near += change[:, :, None] * gram[:, None, at, part]
                levels[:, :, at] = found
            slope += (lattice.reals(levels)[:, :, part] - changes) @ gram[:, part]
        if np.array_equal(levels, before):
            break
    return levels
