"""What gets installed: names, packages, files, requirements, and nothing of the machine that built it."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support import ROOT, run_python

JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info")


@cache
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(section: str, key: str) -> list[str]:
    values = (line.strip() for line in setup_cfg()[section][key].splitlines())
    return [line for line in values if line and not line.startswith("#")]


def rooms() -> dict[str, Path]:
    """The folder of each package in ``package_dir``."""
    pairs = (line.split("=") for line in lines("options", "package_dir"))
    return {package.strip(): ROOT / folder.strip() for package, folder in pairs}


def modules() -> dict[str, Path]:
    """The file of each module of the package."""
    found = {}
    for package, folder in rooms().items():
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            found[".".join([package, *parts])] = path
    return found


def tracked_files() -> list[Path]:
    """The files of the repository: what git does not ignore, or all of them in an exported tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    if listed and listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not {".git", "__pycache__"} & set(path.parts)]
    return [path for path in files if path.is_file()]


def requirement_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_folder_with_python_in_it_is_a_listed_package() -> None:
    # a package missing from setup.cfg is left out of the wheel without a word; an editable install hides that
    on_disk = {name.rpartition(".")[0] if path.name != "__init__.py" else name for name, path in modules().items()}
    assert on_disk == set(lines("options", "packages"))


def test_every_listed_package_has_an_init() -> None:
    listed = set(lines("options", "packages"))
    assert {name for name, path in modules().items() if path.name == "__init__.py"} == listed


def test_every_module_imports_without_the_extras() -> None:
    names = [name for name in modules() if not name.endswith("__main__")]
    # None in sys.modules makes an import fail as if the package were not installed
    program = f"""
import importlib, sys
sys.modules.update(deepspeed=None, openai=None, datasets=None)
for name in {names!r}:
    importlib.import_module(name)
"""
    done = run_python(["-c", program], timeout=300)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light() -> None:
    program = "import sys, rationalrewards; print(rationalrewards.__version__); print(*sys.modules)"
    done = run_python(["-c", program], timeout=60)
    assert done.returncode == 0, done.stderr
    version, loaded = done.stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert not {"torch", "lightning", "transformers", "diffusers", "mlflow", "numpy"} & set(loaded.split())


def test_components_know_no_lightning() -> None:
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in rooms()["rationalrewards.components"].rglob("*.py")
        for name in imported_names(path)
        if name.partition(".")[0] in {"lightning", "pytorch_lightning"}
    ]
    assert not offenders


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def test_no_module_imports_a_room_by_its_bare_name() -> None:
    # from the root of a clone it would work, and give a second copy of every class
    bare = {folder.name for package, folder in rooms().items() if package != "rationalrewards"}
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in tracked_files()
        if path.suffix == ".py"
        for name in imported_names(path)
        if name.partition(".")[0] in bare
    ]
    assert not offenders


def test_everything_imported_is_required() -> None:
    extras = setup_cfg()["options.extras_require"]
    declared = {requirement_name(line) for line in lines("options", "install_requires")}
    declared |= {requirement_name(line) for extra in extras for line in lines("options.extras_require", extra)}
    owners = packages_distributions()
    missing = []
    for path in modules().values():
        for name in {name.partition(".")[0] for name in imported_names(path)} - {"rationalrewards"}:
            if name in sys.stdlib_module_names:
                continue
            names = {requirement_name(owner) for owner in owners.get(name, [name])}
            if not names & declared:
                missing.append(f"{path.relative_to(ROOT)} imports {name}, of {sorted(names)}")
    assert not missing


def test_constraints_hold_every_requirement_above_its_bound() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[requirement_name(name)] = tuple(int(part) for part in re.findall(r"\d+", version))
    sections = [("options", "install_requires")]
    # vLLM pins other versions of torch and transformers than those of the file, and goes into an environment of its own
    sections += [("options.extras_require", extra) for extra in setup_cfg()["options.extras_require"] if extra != "vllm"]
    for section, key in sections:
        for requirement in lines(section, key):
            name = requirement_name(requirement)
            assert name in pinned, f"constraints.txt does not pin {name}"
            for operator, bound in re.findall(r"(>=|<)([\d.]+)", requirement):
                limit = tuple(int(part) for part in bound.split("."))
                assert pinned[name] >= limit if operator == ">=" else pinned[name] < limit, requirement


def test_no_file_names_a_place_on_this_machine() -> None:
    home = r"(?:home|Users)/\w"
    places = [re.escape(str(place)) for place in (ROOT, Path(sys.prefix), Path.home()) if len(place.parts) > 1]
    # at the start of a path, not in the middle of one: a clone in /data must not complain about examples/data
    pattern = re.compile(rf"(?<![\w./~$}}-])(?:{'|'.join(places)}|/{home})".encode())
    found = []
    for path in tracked_files():
        if match := pattern.search(path.read_bytes()):
            found.append(f"{path.relative_to(ROOT)}: {match.group().decode()}")
    assert not found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    # from a copy: setuptools builds in the tree, and would ship what an earlier build left there
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in rooms().values():
        shutil.copytree(folder, source / folder.relative_to(ROOT), ignore=JUNK, dirs_exist_ok=True)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=JUNK)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source]
    done = run_python(build, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


@pytest.mark.slow
def test_the_wheel_holds_one_top_level_name(wheel: list[str]) -> None:
    top = {name.partition("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"rationalrewards"}
    assert not any("/tests/" in name for name in wheel)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_every_room(wheel: list[str]) -> None:
    # modules, configs, rubrics, checkpoints: whatever lies in a package folder is there to be shipped
    expected = {
        "/".join([*package.split("."), *path.relative_to(folder).parts])
        for package, folder in rooms().items()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__"} & set(path.parts) and ".egg-info" not in str(path)
    }
    shipped = {name for name in wheel if name.startswith("rationalrewards/")}
    assert shipped == expected
    assert "rationalrewards/py.typed" in shipped
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
