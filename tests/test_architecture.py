"""The arrows between the packages, and between the rooms of the server, read from the imports themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "server", "online_align", "client", "recipes", "benchmarks", "tests")

ALLOWED = {
    "kernels": {"kernels"},
    "server": {"server", "kernels"},
    "client": {"client", "server.protocol"},
    "online_align": {"online_align", "server", "kernels", "client", "benchmarks.report"},
}
"""What each package may import of ours: a package, or one module of it."""

LIGHT = ("server/__init__.py", "server/protocol.py", "server/config.py", "server/errors.py")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, wherever in it; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            for name in node.names:
                yield f"{node.module}.{name.name}"


def ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def within(name: str, allowed: set[str]) -> bool:
    return any(name == each or name.startswith(each + ".") for each in allowed)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imported(path)
        if ours(name) and not within(name, ALLOWED[package])
    }
    assert not wrong


def test_the_engine_knows_only_errors_and_itself() -> None:
    wrong = {
        f"{path.name} imports {name}"
        for path in modules("server/engine")
        for name in imported(path)
        if ours(name) and not within(name, {"server.engine", "server.errors", "kernels"})
    }
    assert not wrong


def test_few_rooms_know_the_engine() -> None:
    knowing = {
        path.name
        for path in (ROOT / "server").glob("*.py")
        for name in imported(path)
        if within(name, {"server.engine"})
    }
    assert knowing == {
        "__main__.py", "adapter_refusals.py", "adapter_rows.py", "adapter_shelf.py", "adapters.py", "app.py",
        "base_swap.py", "capacity.py", "generations.py", "parameters.py", "scheduler.py", "session.py", "tick.py",
    }  # fmt: skip


@pytest.mark.parametrize("path", LIGHT)
def test_what_a_client_or_a_mistake_needs_is_light(path: str) -> None:
    """Neither torch nor moshi, directly or through others; looked at in a fresh interpreter."""
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    program = f"import sys, {module}; print(sorted({{'torch', 'moshi', 'sphn', 'aiohttp'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", sorted((ROOT / "server").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_each_room_says_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    (offered,) = [
        {ast.literal_eval(name) for name in node.value.elts}
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List)
        and ast.unparse(node.targets[0]) == "__all__"
    ]
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {name for name in defined if not name.startswith("_")} <= offered


def test_this_test_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text("import a.b\nfrom c.d import e\ndef f():\n    from g import h\n")
    assert set(imported(file)) == {"a.b", "c.d.e", "g.h"}
    assert within("server.protocol", {"server.protocol"})
    assert within("server.protocol.Kind", {"server.protocol"})
    assert not within("server.protocols", {"server.protocol"})
