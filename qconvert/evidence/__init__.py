"""Results in, reports out: what each command measured as one ``Report`` value; nothing is rendered here."""

from __future__ import annotations

from qconvert.evidence.comparing import layers_report, layers_section, with_culprits
from qconvert.evidence.evaluating import evaluation_report
from qconvert.evidence.quantizing import quantized_report
from qconvert.evidence.searching import search_report
from qconvert.evidence.sensing import sensitivity_report, with_subjects

__all__ = [
    "evaluation_report",
    "layers_report",
    "layers_section",
    "quantized_report",
    "search_report",
    "sensitivity_report",
    "with_culprits",
    "with_subjects",
]
