"""ACIQ: the best clipping of the Gauss or Laplace distribution nearest the data.

Source: Banner et al. 2018, arXiv:1810.05723. With ``n`` steps over ``[mu - alpha, mu + alpha]`` the expected squared
error, rounding noise ``alpha**2 / (3 n**2)`` and what both tails lose, is least where

    Laplace, b = E|x - mu|:                 alpha / b = t,      t exp(t) = 3 n**2
    Gauss, sigma = sqrt(E (x - mu)**2):     alpha / sigma = t,  t / (3 n**2) = 2 (phi(t) - t Q(t))

with the density ``phi`` and the upper tail ``Q``. For ``n = 2**bits`` these are the published tables (8 bits: 9.8968 b
and 3.9240 sigma), but ``t`` is solved for the ``n`` that the grid has: on symmetric int2 that is 2, not 4, and the
table would cost 1.5 dB, on int4 0.1 dB, at 8 bits nothing.

Symmetric grids: ``mu = 0``. One-sided data: mirrored at 0, as the paper takes a fused ReLU for half of a symmetric
distribution, so ``mu = 0`` and the ``n`` steps are ``2 n`` of the whole, one bit more. Exact zeros, the other half
there, are on every grid and are not counted. Two-sided data on an asymmetric grid keep ``mu``, and the range ends with
the data.

The parameter that matters is ``distribution``: Laplace clips far less. ``auto`` compares ``E|x - mu| / sigma`` with the
ratios of both, ``sqrt(2 / pi) = 0.80`` and ``sqrt(1 / 2) = 0.71``, and takes the nearer. Skewed or heavy-tailed data
(SiLU, sparse activations) are like neither; ``octav`` sees their tails at the same cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, Rows, choices, grid_steps
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range

MIDDLE = (math.sqrt(2 / math.pi) + math.sqrt(1 / 2)) / 2
"""``E|x - mu| / sigma`` above which the data are nearer Gauss than Laplace."""


@dataclass(frozen=True)
class ACIQ(Calibrator):
    """The best range for a distribution with the moments of the data.

    Attributes:
        distribution: ``gauss``, ``laplace``, or ``auto`` for the one that fits better.
    """

    distribution: str = field(default="auto", metadata=choices("auto", "gauss", "laplace"))

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """``mu - alpha`` to ``mu + alpha``."""
        histogram = stats.histogram
        middles = np.arange(histogram.positive.size) + 0.5
        steps = grid_steps(dtype, symmetric=symmetric, narrow_range=narrow_range)
        mirrored = symmetric or not (histogram.negative.any() and histogram.positive.any())
        if mirrored:
            x, counts, mean, steps = middles, histogram.negative + histogram.positive, 0.0, 2 * steps
        else:
            x = np.concatenate([-middles, middles])
            counts = np.concatenate([histogram.negative, histogram.positive])
            mean = float(np.average(x, weights=counts))
        spread = float(np.average(np.abs(x - mean), weights=counts))
        sigma = math.sqrt(float(np.average((x - mean) ** 2, weights=counts)))
        gauss = spread > MIDDLE * sigma if self.distribution == "auto" else self.distribution == "gauss"
        alpha = gauss_clip(steps) * sigma if gauss else laplace_clip(steps) * spread
        return Range((mean - alpha) * histogram.width, (mean + alpha) * histogram.width)

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The same from the moments of the values themselves; zeros are not counted."""
        values = rows.values.astype(np.float64)
        count = np.count_nonzero(values, axis=1)
        steps = grid_steps(dtype, symmetric=symmetric, narrow_range=narrow_range)
        one_sided = (rows.below == 0) | (rows.above == 0) | symmetric
        mean = np.where(one_sided, 0.0, values.sum(1) / count)
        rest = np.where(values == 0, 0.0, np.abs(values - mean[:, None]))
        spread, sigma = rest.sum(1) / count, np.sqrt((rest * rest).sum(1) / count)
        gauss = spread > MIDDLE * sigma if self.distribution == "auto" else self.distribution == "gauss"
        clips = [(gauss_clip(n), laplace_clip(n)) for n in (steps, 2 * steps)]
        by_gauss, by_laplace = (np.where(one_sided, half, whole) for whole, half in zip(*clips, strict=True))
        alpha = np.where(gauss, by_gauss * sigma, by_laplace * spread)
        return mean - alpha, mean + alpha


def laplace_clip(steps: int) -> float:
    """The best ``alpha / b`` for a Laplace distribution and this many steps over ``[-alpha, alpha]``."""
    return _root(lambda t: t + math.log(t / 3) - 2 * math.log(steps))


def gauss_clip(steps: int) -> float:
    """The best ``alpha / sigma`` for a Gauss distribution and this many steps over ``[-alpha, alpha]``."""

    def slope(t: float) -> float:
        density, tail = math.exp(-t * t / 2) / math.sqrt(2 * math.pi), math.erfc(t / math.sqrt(2)) / 2
        return t / (3 * steps**2) - 2 * (density - t * tail)

    return _root(slope)


def _root(slope: Callable[[float], float]) -> float:
    """Where an increasing function is zero, by bisection to the last bit."""
    low, high = 1e-3, 64.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high
