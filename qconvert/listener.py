"""What long work tells whoever watches; the library itself prints nothing."""

from __future__ import annotations


class Listener:
    """Hears notes and progress; this one ignores them."""

    def note(self, text: str) -> None:
        """Something was inferred, changed or left out that the user should know."""

    def start(self, what: str, total: int) -> None:
        """A stage of ``total`` steps begins: samples, or what it is called after."""

    def advance(self, done: int) -> None:
        """So many steps of the stage are done; called from any thread, one at a time."""

    def finish(self) -> None:
        """The stage ended, well or not."""


SILENT = Listener()
