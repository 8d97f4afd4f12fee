"""The noise that scales of channels leave: against plain loops, its gradients, and that the scales found leave less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.recover.noise import POWER, Grids, Linear, Link, noise, quietest

Floats = npt.NDArray[np.float64]

PER_TENSOR, PER_CHANNEL = Grids(False, 255, 255), Grids(True, 15, 255)


def linear(rng: np.random.Generator, shape: tuple[int, int, int], reads: int | None, makes: int | None) -> Linear:
    groups, outputs, inputs = shape
    weight = np.abs(rng.standard_normal(shape)) * np.exp(rng.standard_normal((groups, outputs, 1)))
    peak = weight.max(2)
    return Linear(
        peak,
        ((weight / peak[:, :, None]) ** POWER).astype(np.float32),
        np.square(weight).sum(1),
        rng.uniform(0.1, 2, (groups, inputs)),
        rng.uniform(0.1, 2, (groups, outputs)),
        reads,
        makes,
    )


def network(seed: int) -> tuple[list[Link], list[Linear]]:
    """Three layers in a row, the middle one in groups; the last reads each channel three times."""
    rng = np.random.default_rng(seed)
    links = [
        Link(first, second, repeats, np.exp(rng.standard_normal((5, 8))), np.full(8, 0.05), np.zeros(8, np.bool_))
        for first, second, repeats in (("a", "b", 1), ("b", "c", 3))
    ]
    return links, [
        linear(rng, (1, 8, 4), None, 0),
        linear(rng, (4, 2, 2), 0, 1),
        linear(rng, (1, 3, 24), 1, None),
    ]


def norm(values: Floats) -> float:
    return float((values**POWER).sum() ** (1 / POWER))


def plain(scales: list[Floats], links: list[Link], layers: list[Linear], grids: Grids) -> float:
    """The formulas as they stand, number by number."""
    total = 0.0
    for layer in layers:
        groups, outputs, inputs = layer.widest.shape
        link = None if layer.reads is None else links[layer.reads]
        ins = np.ones(groups * inputs)
        if link is not None and layer.reads is not None:
            ins = np.array([scales[layer.reads][i // link.repeats] for i in range(groups * inputs)])
        outs = np.ones(groups * outputs) if layer.makes is None else scales[layer.makes]
        weight = layer.widest.astype(np.float64) ** (1 / POWER) * layer.peak[:, :, None]
        rows = np.array(
            [weight[o // outputs, o % outputs] * ins[o // outputs * inputs :][:inputs] / outs[o]
             for o in range(groups * outputs)]
        )  # fmt: skip
        for o in range(groups * outputs):
            group = o // outputs
            heard = sum(layer.energy[group, i] / ins[group * inputs + i] ** 2 for i in range(inputs))
            step = 2 * (norm(rows[o]) if grids.per_channel else norm(rows.reshape(-1))) / grids.weights
            total += step**2 * outs[o] ** 2 * layer.counts[group, o % outputs] * heard / 12
        if link is not None and layer.reads is not None:
            step = float(np.mean([norm(row / scales[layer.reads]) for row in link.reach])) / grids.activations
            gains = layer.gain.reshape(-1)
            total += sum(step**2 * ins[i] ** 2 * gains[i] for i in range(gains.size)) / 12
    return total


@pytest.mark.parametrize("grids", [PER_TENSOR, PER_CHANNEL])
@given(seed=st.integers(0, 1000))
def test_noise_is_what_the_formulas_say(grids: Grids, seed: int) -> None:
    links, layers = network(seed)
    logs = [np.random.default_rng(seed).uniform(-1, 1, 8) for _ in links]
    value, _ = noise(logs, links, layers, grids)
    assert value == pytest.approx(plain([np.exp(one) for one in logs], links, layers, grids), rel=1e-5)


@pytest.mark.parametrize("grids", [PER_TENSOR, PER_CHANNEL])
@given(seed=st.integers(0, 1000))
def test_gradients_are_those_of_the_noise(grids: Grids, seed: int) -> None:
    links, layers = network(seed)
    rng = np.random.default_rng(seed)
    logs, way = ([rng.uniform(-1, 1, 8) for _ in links] for _ in range(2))
    value, gradients = noise(logs, links, layers, grids)
    ends = [
        plain([np.exp(a + h * b) for a, b in zip(logs, way, strict=True)], links, layers, grids) for h in (-1e-4, 1e-4)
    ]
    slope = sum(float(one @ along) for one, along in zip(gradients, way, strict=True))
    assert slope == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-3, abs=1e-4 * value)


@pytest.mark.parametrize("grids", [PER_TENSOR, PER_CHANNEL])
@given(seed=st.integers(0, 50))
def test_scales_leave_less_noise_within_their_limits(grids: Grids, seed: int) -> None:
    links, layers = network(seed)
    held = np.arange(8) < 2
    links[0] = replace(links[0], fixed=held, least=np.where(held, 1.0, 0.5))
    scales = quietest(links, layers, grids, steps=100, rate=0.05)
    assert (scales[0][held] == 1).all()
    assert all((scale >= link.least * 0.999).all() for scale, link in zip(scales, links, strict=True))
    before, _ = noise([np.zeros(8) for _ in links], links, layers, grids)
    after, _ = noise([np.log(scale) for scale in scales], links, layers, grids)
    assert after < before


@pytest.mark.parametrize("grids", [PER_TENSOR, PER_CHANNEL])
@given(seed=st.integers(0, 1000))
def test_channels_that_were_planted_wide_get_scales_that_undo_it(grids: Grids, seed: int) -> None:
    links, layers = network(seed)
    logs = [np.random.default_rng(seed).uniform(-1, 1, 8) for _ in links]
    wide = np.geomspace(0.2, 5, 8)
    by_input = wide.reshape(4, 2)
    before, _ = noise(logs, links, layers, grids)
    links[0] = replace(links[0], reach=links[0].reach * wide)
    layers[0] = replace(layers[0], peak=layers[0].peak * wide, counts=layers[0].counts / wide**2)
    layers[1] = replace(
        layers[1],
        energy=layers[1].energy * by_input**2,
        gain=layers[1].gain / by_input**2,
        widest=(layers[1].widest / by_input[:, None] ** POWER).astype(np.float32),
    )
    after, _ = noise([logs[0] + np.log(wide), logs[1]], links, layers, grids)
    assert after == pytest.approx(before, rel=1e-4)


def test_what_is_dead_or_never_active_is_borne() -> None:
    links, layers = network(1)
    links[0] = replace(links[0], reach=np.full_like(links[0].reach, 1e-12))
    layers[1] = replace(layers[1], widest=np.zeros_like(layers[1].widest), energy=np.zeros_like(layers[1].energy))
    for grids in (PER_TENSOR, PER_CHANNEL):
        scales = quietest(links, layers, grids, steps=50, rate=0.05)
        assert all(np.isfinite(one).all() and (one > 0).all() for one in scales)
