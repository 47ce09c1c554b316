"""The card's folders are real, import under ``vlora``, and installing puts nothing else into site-packages."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("merge", "eval", "recipes")


def test_links_point_to_the_real_folders():
    for name in FOLDERS:
        assert (ROOT / name).is_dir() and not (ROOT / name).is_symlink()
        link = ROOT / "vlora" / name
        assert link.is_symlink() and link.resolve() == ROOT / name
        assert str(link.readlink()) == f"../{name}"


def test_every_package_is_listed():
    """A sub-package missing from the list would be left out of the wheel without an error."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for top in ("vlora", *FOLDERS):
        prefix = "vlora" if top == "vlora" else f"vlora.{top}"
        for init in (ROOT / top).rglob("__init__.py"):
            relative = init.parent.relative_to(ROOT / top)
            if top == "vlora" and relative.parts[:1] and relative.parts[0] in FOLDERS:
                continue
            found.add(".".join((prefix, *relative.parts)))
    assert listed == found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_wheel_and_sdist_install_only_vlora(built):
    """``build`` makes the wheel from the sdist, so this proves that both are complete."""
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vlora"}
    for needed in ("vlora/py.typed", "vlora/merge/run.py", "vlora/eval/report.py", "vlora/recipes/cli.py"):
        assert needed in names
    assert "vlora/posterior/card.md.j2" in names
    assert "vlora/eval/report.html.j2" in names
    assert "vlora/eval/tasks/arc_easy.yaml" in names and "vlora/eval/generation/answers.html.j2" in names
    assert any(name.startswith("vlora/recipes/configs/") and name.endswith(".yaml") for name in names)
    assert "vlora/recipes/closed_world/model/model.safetensors" in names
    assert not any("tests/" in name or name.endswith(".pyc") for name in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {"vlora", "merge", "eval", "recipes", "pyproject.toml", "LICENSE", "README.md"} <= inside
