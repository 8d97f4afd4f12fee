"""Errors a user can mend: one clear line (place, value, rule) and a hint."""

from __future__ import annotations


class QConvertError(Exception):
    """Something the user can mend.

    Attributes:
        hint: What to do about it, one sentence, or "" when the message already says it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class PolicyError(QConvertError):
    """The policy file is wrong, or asks for something that matches nothing."""


class ModelError(QConvertError):
    """The model cannot be read, run, or prepared without changing its outputs."""


class DataError(QConvertError):
    """The samples or labels cannot be read, or do not fit the model's inputs."""


class CorruptSampleError(DataError):
    """One sample cannot be read; the rest of the set may be fine.

    Attributes:
        sample: The name of the sample, as shown to the user.
    """

    def __init__(self, sample: str, message: str, *, hint: str = "mend or remove it") -> None:
        super().__init__(message, hint=hint)
        self.sample = sample


class CalibrationError(QConvertError):
    """Statistics are missing, belong to another model, or hold values no range can be computed from."""


class PlanError(QConvertError):
    """What the policy asks for cannot be carried out on this graph."""


class TargetError(QConvertError):
    """The target runtime is unknown, or does not accept what is asked for."""


class ProviderError(QConvertError):
    """The onnxruntime execution provider is not available on this machine."""


class OutputError(QConvertError):
    """An output file exists already or cannot be written."""
