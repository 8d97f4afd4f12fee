"""What a person sees on stderr: notes, progress, errors. Results go to stdout."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from qconvert.listener import Listener

PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where stderr is not a terminal."""


def stderr() -> Console:
    """A console on stderr; colour only on a terminal and without ``NO_COLOR``."""
    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def error_line(message: str, hint: str) -> None:
    """``error: ...`` and, where there is one, ``hint: ...``: one line each."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}")
    if hint:
        console.print(f"[cyan]hint:[/] {escape(' '.join(hint.split()))}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s", style="progress.data.speed")


class Terminal(Listener):
    """Notes as lines; progress as a bar on a terminal, as a line now and then elsewhere, not at all when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = stderr()
        self.bar: Progress | None = None
        self.what, self.total, self.began, self.spoke = "", 0, 0.0, 0.0

    def note(self, text: str) -> None:
        """A line, unless quiet."""
        if not self.quiet:
            self.console.print(f"[dim]note:[/] {escape(text)}")

    def done(self, text: str) -> None:
        """The last line of a command: what was written."""
        if not self.quiet:
            self.console.print(f"[green]{escape(text)}[/]")

    def warn(self, text: str) -> None:
        """Something is likely not what the user wants; shown also when quiet."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    def missed(self, text: str) -> None:
        """A bound that was not met; shown also when quiet."""
        self.console.print(f"[bold red]missed:[/] {escape(text)}")

    def start(self, what: str, total: int) -> None:
        """Shows a bar where someone watches."""
        self.what, self.total, self.began = what, total, time.monotonic()
        self.spoke = self.began
        if self.quiet or not sys.stderr.isatty():
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.add_task(what, total=total)
        self.bar.start()

    def advance(self, done: int) -> None:
        """Moves the bar, or prints a line when the last one is old."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done)
            return
        now = time.monotonic()
        if self.quiet or now - self.spoke < PLAIN_INTERVAL:
            return
        self.spoke = now
        rate = done / (now - self.began)
        left = (self.total - done) / rate
        self.console.print(f"{self.what}: {done}/{self.total}, {rate:.1f}/s, {left:.0f} s left")

    def finish(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def short(path: Path) -> str:
    """A path as the user would type it: relative to the current folder where it lies inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
