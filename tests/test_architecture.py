"""The house keeps its walls: imports point one way, down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "convlstm_wx"

# A room may import rooms of a lower floor, and files of its own folder; never a sibling of its floor or one above.
FLOORS = {
    "units": -1,
    "errors": 0,
    "known_variables": 0,
    "long_names": 0,
    "service_names": 0,
    "conventions": 1,
    "text": 2,
    "files": 1,
    "memory": 1,
    "gridfiles": 2,
    "pieces": 2,
    "config": 2,
    "device": 2,
    "linear": 2,
    "distributed": 2,
    "dressing": 2,
    "models": 3,
    "data": 3,
    "checkpoint": 4,
    "training": 5,
    "forecast": 5,
    "preparing": 5,
    "verification": 5,
    "report": 5,
    "commands": 6,
    "cli": 7,
    "__main__": 8,
}
LIGHT_DATA = {"reading", "regions", "splits", "times"}


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """All modules that a file imports, inside its functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[tuple[str, ...]]:
    """Our own modules among them, as parts after the package's name."""
    parts = {tuple(name.split(".")[1:]) for name in imported_modules(path) if name.split(".")[0] == "convlstm_wx"}
    return {p for p in parts if p and p[0] in FLOORS}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path == PACKAGE / "__init__.py":
        return
    mine = room(path)
    for target in own_imports(path):
        if target[0] != mine:
            assert FLOORS[target[0]] < FLOORS[mine], f"{mine} imports {'.'.join(target)}"


def test_every_room_has_its_floor():
    assert {room(path) for path in files()} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("name", ["verification", "report"])
def test_scores_and_figures_need_no_torch_and_little_of_data(name):
    for path in (PACKAGE / name).glob("*.py"):
        assert not any(module.split(".")[0] == "torch" for module in imported_modules(path)), path
        used = {target[1] for target in own_imports(path) if target[0] == "data" and len(target) > 1}
        assert used <= LIGHT_DATA, path


def test_models_never_import_xarray_and_data_meets_torch_in_one_file():
    for path in (PACKAGE / "models").glob("*.py"):
        assert not any(module.split(".")[0] == "xarray" for module in imported_modules(path)), path
    with_torch = {p.name for p in (PACKAGE / "data").glob("*.py") if "torch" in imported_modules(p)}
    assert with_torch == {"loaders.py"}


def test_scoring_and_drawing_load_without_torch():
    code = (
        "import sys, convlstm_wx.verification.evaluate, convlstm_wx.verification.compare, "
        "convlstm_wx.report.plots, convlstm_wx.report.page; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inits_are_docstrings_only_but_the_first():
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert isinstance(body[0], ast.Expr), path
        assert len(body) == 1 or path.parent == PACKAGE, path  # it has the version, and load_forecaster when asked for
