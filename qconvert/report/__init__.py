"""Rendering only: values in, tables or JSON out."""

from qconvert.report import console, json

__all__ = ["console", "json"]
