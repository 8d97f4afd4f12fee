"""Rendering only: values in, tables or JSON out."""

from qconvert.report import console, json, plot, stats

__all__ = ["console", "json", "plot", "stats"]
