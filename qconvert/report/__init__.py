"""Rendering only: values in, tables or JSON out."""

from qconvert.report import (
    console,
    document,
    formats,
    html,
    json,
    junit,
    layers,
    markdown,
    plot,
    search,
    sensitivity,
    stats,
    store,
)

__all__ = [
    "console",
    "document",
    "formats",
    "html",
    "json",
    "junit",
    "layers",
    "markdown",
    "plot",
    "search",
    "sensitivity",
    "stats",
    "store",
]
