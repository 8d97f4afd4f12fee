"""``python -m tests.formats_table``: every cell that is tried, with its SQNR, as Markdown."""

from __future__ import annotations

import sys

from tests.cells import chosen, ran, sample, title


def main() -> None:
    """Prints the table."""
    write = sys.stdout.write
    write("| model | cell | dB, plain | dB, optimized | against numpy |\n|---|---|---:|---:|---|\n")
    for model in ("digits_cnn", "digits_vit"):
        for cell in chosen(model):
            found = ran(cell, sample(model))
            exact = "-"
            if found.exact is not None:
                exact = "to the bit" if found.levels else f"{min(found.exact):.0f} dB"
            write(f"| {model} | {title(cell)} | {found.sqnr[0]:.1f} | {found.sqnr[1]:.1f} | {exact} |\n")


if __name__ == "__main__":
    main()
