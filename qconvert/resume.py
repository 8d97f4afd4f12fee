"""What an unfinished calibration keeps beside its output, and how a later one goes on from there."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qconvert import calibration
from qconvert.calibration import PART_SUFFIX, Calibration
from qconvert.errors import CalibrationError
from qconvert.files import TEMPORARY
from qconvert.visit import State
from qconvert.workers import release_memory


@dataclass(frozen=True)
class Journal:
    """The place of an unfinished run, and whose run it is.

    Attributes:
        path: The file that is kept until the ``.calib`` file is written.
        about: The calibration to be, without statistics.
    """

    path: Path
    about: Calibration

    @classmethod
    def beside(cls, output: Path, about: Calibration) -> Journal:
        """The journal of the run that is to write ``output``."""
        return cls(output.with_name(output.name + PART_SUFFIX), about)

    def keep(self, state: State) -> None:
        """Writes how far the run came, in place of what was kept before."""
        calibration.save(self.about, self.path, force=True, state=state)
        release_memory()

    def drop(self) -> None:
        """Forgets the run."""
        self.path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Removes what a run that was killed while it wrote has left."""
        for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*{TEMPORARY}"):
            shutil.rmtree(left, ignore_errors=True)

    def begin(self, fresh: State, *, resume: bool, note: Callable[[str], None]) -> State:
        """The state to begin with: what was kept, or ``fresh``.

        Raises:
            CalibrationError: If what was kept cannot be read, or is of another model, other samples or other settings.
        """
        self._sweep()
        if not self.path.is_file():
            if resume:
                note(f"nothing to resume: there is no {self.path.name}; beginning with the first sample")
            return fresh
        if not resume:
            note(f"{self.path.name} of an unfinished run is discarded (--resume goes on with it)")
            return fresh
        kept, state = calibration.load_part(self.path)
        if state is None or not self._same(kept, state, fresh):
            raise CalibrationError(
                f"{self.path}: belongs to a run with another model, other samples or other settings",
                hint="give the same ones, or leave --resume out to begin anew",
            )
        passes = f" of pass {state.passes + 1} of {len(state.groups)}" if len(state.groups) > 1 else ""
        note(f"resuming: {len(state.done)} samples{passes} are done")
        return state

    def _same(self, kept: Calibration, state: State, fresh: State) -> bool:
        values = [sorted(name for group in one.groups for name in group) for one in (state, fresh)]
        same = kept.model_hash == self.about.model_hash and kept.data == self.about.data
        return same and values[0] == values[1]
