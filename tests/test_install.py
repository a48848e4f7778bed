"What `pip install langsamp` brings: library and command without the notebooks' packages, outside a checkout."

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from traitlets.config import Config

from langsamp.core.files import read_json

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(tiny.ROOT / "settings.ini", encoding="utf-8")
META = SETTINGS["DEFAULT"]
MODULES = sorted(p for p in (tiny.ROOT / "langsamp").rglob("*.py") if not p.stem.startswith("_"))
WITH_EXTRAS = {"analysis": "notebooks", "benchmark": "benchmark"}  # Whole packages
WITH_EXTRAS |= {
    f"evaluation.{name}": "evaluate" for name in ("metrics", "linear_probe", "finetune", "tasks", "evaluate")
}
PROVIDERS = importlib.metadata.packages_distributions()  # Distributions by package
EXTRAS = [key.removesuffix("_requirements") for key in META if key.endswith("_requirements")]


def extra_of(module: str) -> str:
    "The extra that a module such as `core.files` needs; empty for most."
    return WITH_EXTRAS.get(module) or WITH_EXTRAS.get(module.partition(".")[0], "")


def distributions(extra: str = "") -> set[str]:
    "The distributions that settings.ini asks for, with those of an extra."
    asked = [Requirement(line) for line in META[f"{extra}_requirements" if extra else "requirements"].split()]
    own = {canonicalize_name(r.name) for r in asked if r.name != META["lib_name"]}
    others = [distributions(name) for r in asked if r.name == META["lib_name"] for name in r.extras]
    return own.union(*others, distributions() if extra else [])


def imports(text: str) -> set[str]:
    "The packages that a module imports when it is imported itself."
    outer = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in outer if isinstance(node, ast.ImportFrom) and not node.level}
    names |= {alias.name for node in outer if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in names if name} - sys.stdlib_module_names - {META["lib_name"]}


def relative_imports(module: str, text: str) -> set[str]:
    "The modules of this library that a module imports when it is imported itself."
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            found |= {base} if "." in base else {f"{base}.{alias.name}" for alias in node.names}
    return found


def test_extras_are_those_that_the_readme_names():
    assert {*EXTRAS} == {"evaluate", "notebooks", "benchmark", "dev"}
    heavy = {"jupyterlab", "papermill", "ipykernel", "ipywidgets", "seaborn", "matplotlib", "scikit-learn", "seqeval"}
    assert not heavy & distributions() and heavy <= distributions("notebooks") <= distributions("dev")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_needs_no_more_than_its_extra(path):
    "What it imports is required by the package, or by the extra of its package or module."
    module = f"{path.parent.name}.{path.stem}"
    text, extra = path.read_text(encoding="utf-8"), extra_of(module)
    wanted = {name: {canonicalize_name(found) for found in PROVIDERS[name]} for name in imports(text)}
    ours = distributions(extra) | ({"ipython"} if extra in ("notebooks", "benchmark") else set())  # Of ipykernel
    ours |= {"pydantic-core"}  # Of pydantic
    assert [name for name, found in wanted.items() if not found & ours] == []
    if not extra:
        assert {name: extra_of(name) for name in relative_imports(module, text) if extra_of(name)} == {}


def test_imports_sees_only_what_happens_at_once():
    assert imports("import re, yaml.nodes as y\nfrom a.b import c\ndef f():\n    import d\nfrom . import e") == {
        "a",
        "yaml",
    }
    text = "from .evaluate import means\nfrom ..core.files import x\nfrom ..params import evaluate"
    assert relative_imports("evaluation.publish", text) == {"evaluation.evaluate", "core.files", "params.evaluate"}


# An environment with the package and what it requires


def closure(names: set[str]) -> set[str]:
    "Distributions and what they require themselves, as pip would install them."
    found, waiting = set(), [Requirement(name) for name in names]
    while waiting:
        asked = waiting.pop()
        if asked.name == META["lib_name"] or (str(asked) in found):
            continue
        found.add(str(asked))
        for line in importlib.metadata.distribution(asked.name).requires or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in [*asked.extras, ""]):
                waiting.append(inner)
    return {canonicalize_name(Requirement(line).name) for line in found}


def link_distributions(names: set[str], target: Path) -> None:
    "Link the files of distributions of this environment into another one's `site-packages`."
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (target / top).exists():
                (target / top).symlink_to(Path(str(distribution.locate_file(top))))


def clean_environment() -> dict[str, str]:
    "The variables of this process without those that lead to this checkout."
    return {n: value for n, value in os.environ.items() if not n.startswith(("LANGSAMP_", "PYTHON", "VIRTUAL"))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "The `bin` folder of an environment in which `pip install langsamp` was done, from a wheel of this checkout."
    home = tmp_path_factory.mktemp("installed")
    source = home / "source"
    shutil.copytree(tiny.ROOT / "langsamp", source / "langsamp")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tiny.ROOT / name, source)
    venv.create(home / "env")
    pip = [sys.executable, "-m", "pip", "-q", "--python", str(home / "env/bin/python")]
    words = ["install", "--no-deps", "--no-build-isolation", "--no-index", str(source)]
    (site,) = home.glob("env/lib/python*/site-packages")
    link_distributions({"setuptools", "wheel"} | closure(distributions()), site)
    subprocess.run([*pip, *words], check=True, env=clean_environment())
    return home / "env/bin"


def run(installed: Path, folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess:
    "Run a program of that environment in a folder that is no checkout."
    words = [str(installed / command[0]), *command[1:]]
    return subprocess.run(words, cwd=folder, env=clean_environment() | more, capture_output=True, encoding="utf-8")


@pytest.mark.slow
def test_every_module_without_an_extra_is_imported(installed, tmp_path):
    names = [f"{path.parent.name}.{path.stem}" for path in MODULES]
    wanted = [f"import langsamp.{name}" for name in names if not extra_of(name)]
    done = run(installed, tmp_path, "python", "-c", "\n".join([*wanted, "import papermill"]))
    assert done.stderr.rstrip().endswith("No module named 'papermill'"), done.stderr[-2000:]


@pytest.mark.slow
def test_the_command_trains_encodes_and_publishes_in_an_empty_folder(installed, tmp_path):
    "Without LANGSAMP_OUTPUTS, results are in ./outputs, and what needs an extra says so."
    texts = tiny.write_corpus(tmp_path / "texts")
    given = tiny.params_of(texts, run_name="first", max_steps=4, warmup_steps=0).model_dump()
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(given))
    work = tmp_path / "work"
    work.mkdir()
    done = run(installed, work, "langsamp", "pretrain", "../first.yaml")
    assert done.returncode == 0 and "outputs/first: step 4" in done.stdout, done.stderr[-2000:]
    assert read_json(work / "outputs/first/provenance.json")["sessions"][0]["git"]["commit"] == ""
    opened = (
        "from langsamp.encoding.open_encoder import open_encoder as o; print(o('first', 'outputs').encode(['a']).shape)"
    )
    assert run(installed, work, "python", "-c", opened).stdout == "(1, 32)\n"
    done = run(installed, work, "langsamp", "push", "run=first", "repo_id=me/first", LANGSAMP_OUTPUTS="outputs")
    assert done.returncode == 0 and (work / "outputs/published/me--first/README.md").exists(), done.stderr[-2000:]
    assert {path.name for path in work.iterdir()} == {"outputs"}


@pytest.mark.slow
@pytest.mark.parametrize("words, extra", [(["evaluate"], "evaluate"), (["figure", "ablation"], "notebooks")])
def test_a_command_that_needs_an_extra_names_it(installed, tmp_path, words, extra):
    done = run(installed, tmp_path, "langsamp", *words)
    assert done.returncode == 2 and done.stderr.startswith(f"langsamp: {words[0]} needs `"), done.stderr[-2000:]
    assert f'pip install "langsamp[{extra}]"' in done.stderr and not [*tmp_path.iterdir()]


# JupyterLab of `make lab`


def test_jupyter_cleans_a_notebook_on_save():
    "Execution counts go, papermill's tags stay; set-up puts the file where this environment's Jupyter reads it."
    script = (tiny.ROOT / "scripts/jupyter_server_config.py").read_text(encoding="utf-8")
    exec(script, {"c": (config := Config())})
    cell = {"cell_type": "code", "id": "a", "source": "1", "outputs": [], "execution_count": 3}
    cell["metadata"] = {"tags": ["parameters"], "collapsed": True}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    model = {"type": "notebook", "content": notebook}
    manager = SimpleNamespace(root_dir=str(tiny.ROOT))
    config.ContentsManager.pre_save_hook(path="nbs/03_pretrain.ipynb", model=model, contents_manager=manager)
    assert cell["execution_count"] is None and cell["metadata"] == {"tags": ["parameters"]}
    setup = (tiny.ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    assert "cp scripts/jupyter_server_config.py .venv/etc/jupyter/" in setup


def test_make_lab_passes_options():
    words = ["make", "-n", "-o", ".venv/ok", "lab", "ARGS=--port 8889"]
    shown = subprocess.run(words, cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
    allowed = "--allow-root " if os.getuid() == 0 else ""
    assert f"jupyter lab {allowed}--port 8889" in shown.replace("  ", " ")
