"""The structure of the code: imports point down, and files and functions stay short enough to read."""

import ast
import itertools
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "difflid_jax"

# From the bottom up; rooms of one level may import each other, without a circle. Programs are above all.
LEVELS = (
    ("__init__", "atomic", "cli", "compiled", "parallel"),
    ("images", "weights"),
    ("layers",),
    ("backbones", "diffusion", "network"),
    ("baselines", "data", "features", "metrics"),
    ("evaluation", "restoration", "training"),
    ("config",),
    ("exhibits", "web"),
)
RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
PROGRAM = len(LEVELS)

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 300, 60
LONG_FUNCTIONS = {
    "difflid_jax/data/sources.py:open_data",
    "difflid_jax/training/loop.py:run",
    "difflid_jax/weights/store.py:save",
    "scripts/file_table.py:_samples",
    "difflid_jax/config/schema.py:default",  # a table of defaults
    "difflid_jax/diffusion/unet.py:UNet.__init__",  # reads in the order of the checkpoint
    "difflid_jax/weights/pickle_reader.py:_Machine.step",
}


def modules() -> dict[str, ast.Module]:
    """Path relative to the repository → parsed source, of all code but tests."""
    folders = (PACKAGE, *(REPOSITORY / name for name in ("convert_weights", "scripts", "configs")))
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


MODULES = modules()


def room_of(module: str) -> str:
    """`difflid_jax.network.cim` → `network`."""
    return [*module.split("."), "__init__"][1]


def imports(tree: ast.Module) -> set[str]:
    """The modules of this package that are imported, anywhere in a file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "difflid_jax":
            names = [alias.name for alias in node.names] if node.module == "difflid_jax" else [""]
            found.update(f"{node.module}.{name}".rstrip(".") for name in names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "difflid_jax")
    return found


def rooms_imported() -> dict[str, set[str]]:
    """Room → the rooms that it imports, of the package."""
    found: dict[str, set[str]] = {}
    for path, tree in MODULES.items():
        if path.startswith("difflid_jax/"):
            room = path.removesuffix(".py").split("/")[1]
            found.setdefault(room, set()).update(map(room_of, imports(tree)))
    return found


def test_imports_point_down():
    wrong = [
        f"{room} imports {other}"
        for room, others in rooms_imported().items()
        for other in others - {room, "__init__", "load_restorer", "__version__"}
        if room != "__init__" and RANK.get(room, PROGRAM) < RANK.get(other, PROGRAM)
    ]
    assert not wrong, sorted(wrong)


def test_rooms_of_one_level_import_each_other_one_way():
    rooms = rooms_imported()
    wrong = [
        f"{a} and {b}"
        for level in LEVELS
        for a, b in itertools.combinations(level, 2)
        if b in rooms.get(a, ()) and a in rooms.get(b, ())
    ]
    assert not wrong, wrong


def test_the_network_knows_nothing_of_diffusion_and_only_config_knows_a_config_dict():
    assert "diffusion" not in rooms_imported()["network"]
    users = [
        path
        for path, tree in MODULES.items()
        if path.startswith("difflid_jax/") and path.count("/") > 1 and "/config/" not in path
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import) and "ml_collections" in ast.unparse(node)
    ]
    assert not users, users


@pytest.mark.parametrize("kind", ["files", "functions"])
def test_nothing_is_too_long_to_read(kind):
    long = []
    for path, tree in MODULES.items():
        if kind == "files":
            lines = len((REPOSITORY / path).read_text("utf-8").splitlines())
            long += [f"{path}: {lines}"] if lines > MOST_LINES else []
            continue
        for parent in ast.walk(tree):
            for node in ast.iter_child_nodes(parent):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    prefix = f"{parent.name}." if isinstance(parent, ast.ClassDef) else ""
                    name, lines = f"{path}:{prefix}{node.name}", node.end_lineno - node.lineno + 1
                    if lines > MOST_LINES_OF_A_FUNCTION and name not in LONG_FUNCTIONS:
                        long.append(f"{name}: {lines}")
    assert not long, long


def test_every_path_in_the_table_of_the_paper_exists():
    text = (REPOSITORY / "docs" / "paper.md").read_text("utf-8")
    named = {word for word in text.replace("`", " ").replace(":", " ").split() if word.endswith(".py")}
    missing = [name for name in named if not ((REPOSITORY / name).exists() or (PACKAGE / name).exists())]
    assert named and not missing, missing
