"Working in JupyterLab leaves git clean: set-up configures the clone, and own files have a place that git ignores."

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from traitlets.config import Config

RUN = "nbs/03_pretrain.ipynb"
LIBRARY = "nbs/library/core/00_errors.ipynb"


def git(folder: Path, *words: str) -> str:
    "What git prints; an error fails the test."
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    found = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *names, *words], cwd=folder, capture_output=True, text=True, env=found)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def clone(tmp_path) -> Path:
    "A repository with two notebooks, configured as set-up does it."
    for name in (
        ".gitattributes",
        ".gitignore",
        RUN,
        LIBRARY,
        "scripts/configure_git.sh",
        "settings.ini",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny.ROOT / name, tmp_path / name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    subprocess.run(["bash", "scripts/configure_git.sh"], cwd=tmp_path, check=True)
    return tmp_path


def rewrite(path: Path, outputs: str = "", source: str = "") -> None:
    "Save a notebook with an output in its last code cell, or with an edited first cell."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    stream = {"name": "stdout", "output_type": "stream", "text": [outputs]}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if outputs:
        code[-1] |= {"outputs": [stream], "execution_count": 9}
        notebook["metadata"]["language_info"] = {"name": "python"}
    if source:
        notebook["cells"][0]["source"] = [source]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_in_lab(clone: Path, name: str, **edits: str) -> None:
    "Open a notebook in JupyterLab as set-up configures it, run or edit it, and save it."
    exec((tiny.ROOT / "scripts/jupyter_server_config.py").read_text(encoding="utf-8"), {"c": (config := Config())})
    manager = AsyncLargeFileManager(root_dir=str(clone), config=config)
    rewrite(clone / name, **edits)
    model = asyncio.run(manager.get(name, content=True))
    asyncio.run(manager.save(model, name))


def status(clone: Path) -> list[str]:
    return git(clone, "status", "--porcelain").split("\n")[:-1]


def test_running_a_notebook_in_lab_changes_nothing_for_git(clone, monkeypatch):
    "What was run is in outputs/notebooks; an edited cell is a change, and so are outputs of the library's examples."
    monkeypatch.chdir(clone)
    save_in_lab(clone, RUN, outputs="of my run\n")
    assert status(clone) == [] and "of my run" in (clone / "outputs/notebooks/03_pretrain.ipynb").read_text()
    save_in_lab(clone, RUN, outputs="of my own run\n", source="# Mine")
    assert status(clone) == [f" M {RUN}"] and "of my own run" in (clone / RUN).read_text()
    save_in_lab(clone, LIBRARY, outputs="an example\n")
    assert status(clone) == [f" M {RUN}", f" M {LIBRARY}"]


def test_a_copy_of_a_runner_is_saved_as_it_is(clone, monkeypatch):
    monkeypatch.chdir(clone)
    (clone / "outputs").mkdir()
    shutil.copy(clone / RUN, clone / "outputs/mine.ipynb")
    save_in_lab(clone, "outputs/mine.ipynb", outputs="of my run\n")
    assert "of my run" in (clone / "outputs/mine.ipynb").read_text() and status(clone) == []


def test_outputs_of_two_branches_merge(clone):
    "Both branches ran a library notebook, and one edited it: the edit is there, and the file is a notebook."
    git(clone, "checkout", "-qb", "other")
    rewrite(clone / LIBRARY, outputs="theirs\n", source="# Edited")
    git(clone, "commit", "-qam", "theirs")
    git(clone, "checkout", "-q", "main")
    rewrite(clone / LIBRARY, outputs="ours\n")
    git(clone, "commit", "-qam", "ours")
    git(clone, "merge", "-q", "other")
    merged = json.loads((clone / LIBRARY).read_text(encoding="utf-8"))
    assert merged["cells"][0]["source"] in ("# Edited", ["# Edited"]) and "<<<<" not in json.dumps(merged)
    assert "ours" in json.dumps(merged["cells"][-1]) and status(clone) == []


def test_set_up_configures_git_and_only_its_own_repository(clone):
    "Unpacked inside another repository, it leaves that one as it is."
    assert "\nbash scripts/configure_git.sh\n" in (tiny.ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    shutil.copytree(clone / "scripts", clone / "unpacked/scripts")
    before = (clone / ".git/config").read_bytes()
    subprocess.run(["bash", "unpacked/scripts/configure_git.sh"], cwd=clone, check=True)
    assert (clone / ".git/config").read_bytes() == before and b"nbdev_merge" in before


def test_own_parameters_have_a_place_that_git_ignores(clone):
    (clone / "params").mkdir()
    for name in ("mine.yaml", "mine-on-a-gpu.yaml"):
        shutil.copy(tiny.ROOT / "params/template.yaml", clone / "params" / name)
    assert status(clone) == []
    shutil.copy(tiny.ROOT / "params/template.yaml", clone / "params/other.yaml")
    assert status(clone) == ["?? params/"]
