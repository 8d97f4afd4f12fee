"""Statistics of a float model that was rewritten: of what changed, taken again from the samples at hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from qconvert.accumulate import Accumulators
from qconvert.expose import open_exposed
from qconvert.fetch import Fetcher
from qconvert.histogram import TensorStats
from qconvert.session import Feeds


def restate(
    model: ir.Model, stats: Mapping[str, TensorStats], changed: Collection[str], probes: Sequence[Feeds]
) -> Mapping[str, TensorStats]:
    """The statistics with those of changed values taken anew.

    Args:
        model: The rewritten model.
        stats: Those of the original.
        changed: Names of values; those without statistics do not count.
        probes: Samples.

    Raises:
        ModelError: If onnxruntime refuses the model or a sample.
    """
    names = [name for name in stats if name in changed]
    if not names:
        return stats
    fetch, found = Fetcher(open_exposed(model, names, provider="cpu")), Accumulators(len(names))
    for index, probe in enumerate(probes):
        (arrays,) = fetch(probe)
        found.add([arrays[name] for name in names], index=index)
    return {**stats, **dict(zip(names, found.stats(), strict=True))}
