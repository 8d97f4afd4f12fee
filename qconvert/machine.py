"""What this machine has, and what that means for quantized models."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnxruntime as ort

from qconvert import __version__
from qconvert.session import GPU_INSTALL, PROVIDERS
from qconvert.workers import default_workers

_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "onnxscript", "numpy", "numba")


@dataclass(frozen=True)
class Machine:
    """Versions, CPU and providers.

    Attributes:
        versions: ``(package, version)``.
        architecture: e.g. ``x86_64``.
        cpus: How many this process may use.
        instructions: CPU instruction sets that integer kernels use; empty where they cannot be read.
        providers: ``(name, available)``.
        meaning: Consequences, one line each.
    """

    versions: tuple[tuple[str, str], ...]
    architecture: str
    cpus: int
    instructions: tuple[str, ...]
    providers: tuple[tuple[str, bool], ...]
    meaning: tuple[str, ...]


def examine() -> Machine:
    """Looks at this machine."""
    flags = cpu_flags()
    instructions = tuple(flag for flag in _FLAGS if flag in flags)
    available = ort.get_available_providers()
    providers = tuple((name, long in available) for name, long in PROVIDERS.items())
    versions = (
        ("qconvert", __version__),
        ("python", platform.python_version()),
        *((name, version(name)) for name in _PACKAGES),
    )
    meaning = tuple(text for text in (_kernels(instructions), saturation_warning(), _providers(providers)) if text)
    return Machine(versions, platform.machine(), default_workers(), instructions, providers, meaning)


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the CPU; empty where the system does not say."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(
        word for line in lines if line.startswith(("flags", "Features")) for word in line.partition(":")[2].split()
    )


def saturation_warning() -> str:
    """What uint8 x int8 products do on x86 CPUs without VNNI, or "" where they are exact."""
    flags = cpu_flags()
    if platform.machine() not in {"x86_64", "AMD64"} or not flags or flags & {"avx_vnni", "avx512_vnni"}:
        return ""
    return (
        "this CPU has no VNNI: sums of uint8 x int8 products can saturate at 16 bits, so results differ from machines "
        "with VNNI; '--weights uint8' avoids it"
    )


def _kernels(instructions: tuple[str, ...]) -> str:
    fast = [flag for flag in instructions if flag in {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}]
    return f"8-bit models run in fast integer kernels ({', '.join(fast)})" if fast else ""


def _providers(providers: tuple[tuple[str, bool], ...]) -> str:
    missing = [name for name, available in providers if not available]
    return f"--provider {' and '.join(missing)}: not in this onnxruntime: {GPU_INSTALL}" if missing else ""
