"""What can be made for which runtime: claimed by ``qconvert formats``, refused where it is not."""

from qconvert.support.cells import Cell, cells, refusal
from qconvert.support.check import check, nearest
from qconvert.support.rows import Row, rows

__all__ = ["Cell", "Row", "cells", "check", "nearest", "refusal", "rows"]
