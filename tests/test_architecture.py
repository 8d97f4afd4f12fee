"""The rooms of the house: a room imports only rooms above it, and foreign libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "qconvert"

ROOMS = (
    "lazy",
    "errors",
    "files",
    "workers",
    "listener",
    "numerics",
    "float8",
    "metrics",
    "intervals",
    "scores",
    "reports",
    "gates",
    "histogram",
    "kernels",
    "row_kernels",
    "rounding_kernels",
    "accumulate",
    "channels",
    "calibrators",
    "thresholds",
    "preprocess",
    "targets",
    "policy",
    "rules",
    "graph",
    "tensors",
    "random_inputs",
    "schemas",
    "samples",
    "visit",
    "plan",
    "rewrite",
    "support",
    "session",
    "torch_graph",
    "parts",
    "expose",
    "fetch",
    "memory",
    "prepare",
    "simulate",
    "capture",
    "calibration",
    "resume",
    "exchange",
    "choose",
    "provenance",
    "kernel_census",
    "comparison",
    "layers",
    "sensing",
    "searching",
    "recover",
    "inspection",
    "machine",
    "pipeline",
    "weight_only",
    "conversion",
    "evidence",
    "report",
    "cli",
    "__main__",
)
"""From the top of the house to its ground; a room may import what stands before it."""

EVERYWHERE = frozenset({"errors", "__init__"})

FOREIGN = {
    "typer": {"cli"},
    "rich": {"cli", "report"},
    "onnxruntime": {"session", "fetch", "expose", "comparison", "conversion", "machine"},
    "onnxscript": {"prepare"},
    "onnx": {"prepare", "samples", "schemas"},
    "numba": {"kernels", "row_kernels", "rounding_kernels"},
    "PIL": {"samples"},
    "ruamel": {"policy"},
    "pydantic": {"policy", "preprocess", "report", "cli"},
    "pydantic_core": {"policy"},
    "plotly": {"report"},
    "torch": {"torch_graph", "recover"},
    "jinja2": {"report"},
}
"""Who may import what; ``onnx`` where protobufs are read or converted, everything else goes through ``onnx_ir``."""

PURE = frozenset(ROOMS[: ROOMS.index("graph")])
"""Rooms that know no graph and no runtime."""


@dataclass(frozen=True)
class Import:
    """``room`` imports ``name`` in line ``line`` of ``path``."""

    path: str
    line: int
    room: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.room} imports {self.name}"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports() -> Iterator[Import]:
    """Every import of the package, those inside functions and behind TYPE_CHECKING too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _names(node):
                yield Import(str(path.relative_to(PACKAGE)), node.lineno, room_of(path), name)  # type: ignore[attr-defined]


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


IMPORTS = tuple(imports())
INNER = tuple(one for one in IMPORTS if one.name.startswith("qconvert."))
OUTER = tuple(one for one in IMPORTS if not one.name.startswith("qconvert."))


def target(one: Import) -> str:
    """The room an import leads to; ``__init__`` for names of the package itself."""
    part = one.name.split(".")[1]
    return part if part in ROOMS else "__init__"


def test_every_room_is_on_the_list() -> None:
    found = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert found == set(ROOMS)


def test_rooms_import_upwards_only() -> None:
    order = {room: place for place, room in enumerate(ROOMS)}
    wrong = [
        str(one)
        for one in INNER
        if one.room != "__init__" and target(one) not in EVERYWHERE and order[target(one)] > order[one.room]
    ]
    assert not wrong, "\n".join(wrong)


def test_of_the_package_itself_only_the_version_is_imported() -> None:
    wrong = [str(one) for one in INNER if target(one) == "__init__" and one.name != "qconvert.__version__"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", FOREIGN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    wrong = [str(one) for one in OUTER if one.name.split(".")[0] == library and one.room not in FOREIGN[library]]
    assert not wrong, "\n".join(wrong)


def test_rooms_without_a_graph_know_neither_onnx_nor_a_runtime() -> None:
    wrong = [str(one) for one in OUTER if one.room in PURE and one.name.split(".")[0].startswith("onnx")]
    assert not wrong, "\n".join(wrong)


def test_graphs_are_built_with_onnx_ir_alone() -> None:
    wrong = [str(one) for one in OUTER if one.name.startswith("onnx.helper")]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_and_reports_print() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if room_of(path) not in {"cli", "report", "__main__"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"})
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
    ]
    assert not wrong, "\n".join(wrong)


HEAVY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "numba", "numpy", "PIL", "jinja2", "plotly", "ruamel")


@pytest.mark.parametrize(
    "command", ["--help", "--version", "calibrate --help", "stats --help", "quantize -h", "policy --help"]
)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\n"
        "from qconvert.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print('heavy:', *sorted(set({HEAVY}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_the_package_itself_is_instant() -> None:
    code = f"import sys, qconvert; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_names_resolve() -> None:
    import qconvert

    assert all(getattr(qconvert, name) is not None for name in qconvert.__all__)
