"""The installed package has the content of the folders, and it imports from anywhere."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"neurogen_numba": ROOT / "neurogen_numba", "neurogen_numba/kernels": ROOT / "kernels"}  # as imported: in the checkout


def run(*arguments, cwd):
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel, built from a copy: the checkout's build/ would be packed again."""
    pytest.importorskip("setuptools", minversion="77")  # [dev] has it
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("neurogen_numba", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    name = run("-c", f"from setuptools.build_meta import build_wheel; print(build_wheel({str(built)!r}))", cwd=source).splitlines()[-1]
    with zipfile.ZipFile(built / name) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = set()
    for package, folder in FOLDERS.items():
        found |= {".".join([*package.split("/"), *path.parent.relative_to(folder).parts]) for path in folder.rglob("*.py")}
    assert set(config["options"]["packages"].split()) == found


def test_every_package_has_an_init():
    for folder in FOLDERS.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package"


def test_no_module_of_the_package_starts_with_cuda():
    # numba-cuda redirects every import with "numba.cuda" in its dotted name, "neurogen_numba.cuda..." included
    assert not list((ROOT / "neurogen_numba").glob("cuda*"))


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel):
    expected = {f"{package}/{path.relative_to(folder).as_posix()}" for package, folder in FOLDERS.items() for path in folder.rglob("*.py")}
    packed = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file() and ".dist-info" not in str(path)}
    assert packed == expected | {"neurogen_numba/py.typed"}


def test_the_wheel_brings_the_command_and_the_version(wheel):
    from neurogen_numba import __version__

    (info,) = wheel.glob("*.dist-info")
    assert "neurogen = neurogen_numba.cli:main" in (info / "entry_points.txt").read_text()
    assert f"Version: {__version__}\n" in (info / "METADATA").read_text()


@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_kernels_import_from_an_unrelated_folder(installed, request, tmp_path):
    root = request.getfixturevalue("wheel") if installed else ROOT
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import neurogen_numba.kernels as kernels; print(kernels.__file__)"
    expected = root / ("neurogen_numba/kernels" if installed else "kernels") / "__init__.py"
    assert run("-c", code, cwd=tmp_path) == str(expected)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("target, tools", [("train", False), ("chat", False), ("lint", True), ("test", True)])
def test_make_installs_the_tools_of_development_only_where_they_are_needed(target, tools, tmp_path):
    for name in ("Makefile", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = [line.rpartition("--editable ")[2] for line in done.stdout.splitlines() if "pip install" in line]
    assert installed[0] in ("'.'", "'.[cuda]'") and installed[1:] == ["'.[dev]'"] * tools


def test_kernels_have_one_name(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "import neurogen_numba.kernels, not kernels" in done.stderr
