"Rules for the repository: versions, params files, notebooks, the order of modules, what must not be committed."

import ast
import json
import re
from configparser import ConfigParser
from pathlib import Path

import papermill
import pytest
import tiny
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from langsamp.cli import main as cli_main
from langsamp.params import benchmark, evaluate, publish
from langsamp.params import pretrain as params
from langsamp.params.pretrain import PretrainParams
from langsamp.params.yaml_reader import read_yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
RUNNERS = [
    p
    for p in NOTEBOOKS
    if p.parent.name in ("figures", "tutorials") or re.match(r"\d", p.name) and p.parent.name == "nbs"
]
CLUSTER = sorted((ROOT / "params/cluster").iterdir())  # For accelerate and Slurm, not for a notebook
OWN = set((ROOT / "params").glob("mine*"))  # Of the user, ignored by git
PARAMS = sorted(set((ROOT / "params").rglob("*.yaml")) - set(CLUSTER) - OWN)
MODULES = sorted(p for p in (ROOT / "langsamp").rglob("*.py") if not p.stem.startswith("_"))
# Data flows to the right: a package imports only those before it, and a module only those before it in its package.
PACKAGES = """core params languages corpora tokenization data model training encoding evaluation analysis
    benchmark cli""".split()
ORDER = [
    f"{package}.{path.stem.partition('_')[2]}"
    for package in PACKAGES
    for path in sorted((ROOT / "nbs/library" / package).glob("[0-9]*.ipynb"))
]
PARAM_MODULES = (params, evaluate, benchmark, publish)
STAGES = {
    "corpora": ("01_corpus.ipynb", params.CorpusBuildParams),
    "adapted": ("02_start.ipynb", params.AdaptParams),
    "params": ("03_pretrain.ipynb", PretrainParams),
    "evaluations": ("04_evaluate.ipynb", evaluate.EvaluationParams),
    "reproductions": ("05_reproduce.ipynb", evaluate.ReproductionParams),
    "benchmarks": ("06_benchmark.ipynb", benchmark.BenchmarkParams),
}
WITHOUT_FILES = {  # Stages of which params/ has no example
    "plan": ("02a_plan.ipynb", params.PlanParams),
    "publish": ("07_publish.ipynb", publish.PublishParams),
}
FIGURES = {name: one.kind for name, one in cli_main.FIGURES.items()}
LOCAL = r"/(?:work|tmp|root|home|Users)/[a-z]|file:/{2}|registry\.np|/simp[l]e\b|files\.pythonhosted"


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def cells(path: Path, kind: str = "code") -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def requirements(settings) -> dict[str, Requirement]:
    lines = [line for key in settings if key.endswith("requirements") for line in settings[key].split()]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines) if r.name != settings["lib_name"]}


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(r.name): r for r in map(Requirement, (x for x in lines if x and not x.startswith("#")))}


# Versions and metadata


def test_settings_name_the_stack(settings):
    keys = ("requirements", "notebooks_requirements", "dev_requirements")
    core, notebooks, dev = [{Requirement(line).name for line in settings[key].split()} for key in keys]
    assert core >= set("torch transformers datasets accelerate".split()) and "nbdev" in dev
    assert notebooks >= set("jupyterlab papermill seaborn".split())


def test_every_requirement_is_pinned_and_nothing_else(requirements, pins):
    assert sorted(pins) == sorted(requirements)


def test_pins_are_exact_and_within_the_ranges(requirements, pins):
    for name, pin in pins.items():
        (only,) = pin.specifier
        assert only.operator == "==" and requirements[name].specifier.contains(only.version), name


def test_conda_environment(settings):
    found = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert found["name"] == settings["lib_name"] and found["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = found["dependencies"]
    assert f"python={settings['min_python']}" in conda and any(line.startswith("pip>") for line in conda)
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_citation(settings):
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == settings["version"] and found["repository-code"] == settings["git_url"]
    assert "2409.18199" in found["preferred-citation"]["url"]


# Parameter files


def fits(value, kind: str) -> bool:
    "Whether a YAML value is of the type that papermill read in the parameters cell."
    outer, _, inner = kind.removesuffix("]").partition("[")
    if outer == "list":
        return isinstance(value, list) and all(fits(v, inner) for v in value)
    if outer == "dict":
        return isinstance(value, dict) and (not inner or all(fits(v, inner.split(", ")[1]) for v in value.values()))
    return type(value).__name__ == outer or (outer == "float" and type(value) is int)


def test_fits():
    assert fits(["a"], "list[str]") and fits({"a": 1.0}, "dict[str, float]") and fits(1, "float")
    assert not (fits("1e-3", "float") or fits(True, "int") or fits([1], "list[str]") or fits(1, "None"))


def stage_of(path: Path) -> tuple[str, type]:
    "The notebook of a params file, and the class that checks its values."
    stem = path.stem.partition("-")[0]
    return STAGES[path.parent.name] if path.parent.name in STAGES else (f"figures/{stem}.ipynb", FIGURES[stem])


def test_there_are_parameter_files():
    assert {p.parent.name for p in PARAMS} == STAGES.keys() | {"figures"}


@pytest.mark.parametrize("path", PARAMS, ids=short)
def test_parameter_file(path):
    known = papermill.inspect_notebook(str(ROOT / "nbs" / stage_of(path)[0]))
    given = yaml.safe_load(path.read_text())
    assert given and set(given) <= set(known)
    assert [name for name, value in given.items() if not fits(value, known[name]["inferred_type_name"])] == []


@pytest.mark.parametrize("path", PARAMS, ids=short)
def test_parameter_file_is_without_conflicts(path):
    "The stage accepts it, and a corpus, an adapted checkpoint or a run has the name of its file."
    made = stage_of(path)[1].model_validate(read_yaml(path))
    name = {"params": "run_name", "figures": "", "evaluations": ""}.get(path.parent.name, "name")
    assert not name or getattr(made, name) == ("mine" if path.stem == "template" else path.stem)


@pytest.mark.parametrize("path", [*PARAMS, *CLUSTER], ids=short)
def test_parameter_file_says_how_to_run_it(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header, "starts with a comment"
    assert [word for word in ("Command:", "Hardware:", "Time:", "Expected:") if word not in header[0]] == []
    assert short(path) in header[0]


@pytest.mark.parametrize("kind", [*STAGES, *WITHOUT_FILES, *FIGURES])
def test_comments_of_a_runner_are_the_descriptions_of_its_parameters(kind):
    "papermill and the documentation show the same text."
    stages = STAGES | WITHOUT_FILES
    notebook, model = stages[kind] if kind in stages else (f"figures/{kind}.ipynb", FIGURES[kind])
    found = papermill.inspect_notebook(str(ROOT / "nbs" / notebook))
    descriptions = {name: model.model_fields[name].description for name in found}
    assert {name: facts["help"] for name, facts in found.items()} == descriptions


def test_every_figure_is_a_command_with_exactly_the_parameters_and_defaults_of_its_notebook():
    pages = {path.stem: path for path in (ROOT / "nbs/figures").glob("*.ipynb")}
    assert {name: kind().model_dump() for name, kind in FIGURES.items()} == {
        name: tiny.defaults_of(f"figures/{name}") for name in pages
    }
    read = {name: re.findall(r"from_notebook\((\w+), ", str(cells(path))) for name, path in pages.items()}
    assert read == {name: [kind.__name__] for name, kind in FIGURES.items()}


# Notebooks


def test_there_are_runners():
    assert {p.parent.name for p in RUNNERS} == {"nbs", "figures", "tutorials"}


@pytest.mark.parametrize("path", [path for path in RUNNERS if "from_notebook(" in path.read_text()], ids=short)
def test_stored_parameters_are_those_of_today(path):
    "A runner that shows its parameters was run since it has all of them."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        kind = re.search(r"from_notebook\((\w+), globals", "".join(cell["source"]))
        shown = "".join("".join(one.get("data", {}).get("text/plain", "")) for one in cell.get("outputs", []))
        if kind and shown:
            fields = next(getattr(one, kind[1]) for one in PARAM_MODULES if hasattr(one, kind[1])).model_fields
            assert [name for name in fields if f"{name}=" not in shown] == [], "run the notebook again"


@pytest.mark.parametrize("path", RUNNERS, ids=short)
def test_runner_has_one_typed_parameters_cell(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and not re.search(r"#\|\s*export", "".join(tagged[0]["source"]))
    found = papermill.inspect_notebook(str(path))
    assert found and all(p["inferred_type_name"] != "None" and p["help"] for p in found.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_notebook_has_short_cells_and_small_images(path):
    code = [cell for cell in cells(path) if "parameters" not in cell["metadata"].get("tags", [])]  # Those are a list
    code = [cell for cell in code if not imports_only("".join(cell["source"]))]
    lines = [len("".join(cell["source"]).splitlines()) for cell in code]
    images = [d for c in cells(path) for o in c["outputs"] for k, d in o.get("data", {}).items() if k[:5] == "image"]
    assert max(lines, default=0) <= 25
    assert all(len("".join(image)) <= 100 * 1024 * 4 / 3 for image in images)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=short)
def test_notebook_keeps_no_state_of_widgets(path):
    "Progress bars leave thousands of lines there, which no page shows."
    assert "widgets" not in json.loads(path.read_text())["metadata"]


def imports_only(text: str) -> bool:
    "Whether a cell only imports."
    return not text.startswith(("%", "!")) and all(
        isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(text).body
    )


def test_sidebar_lists_every_notebook():
    sidebar = (ROOT / "nbs/sidebar.yml").read_text()
    assert sorted(re.findall(r"\S+\.ipynb", sidebar)) == sorted(str(p.relative_to(ROOT / "nbs")) for p in NOTEBOOKS)


def test_sidebar_has_few_groups_and_a_section_per_package():
    "Newcomers see at most ten groups; each package is a section headed by its index page."
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text())["website"]["sidebar"]
    *_, library = sidebar["contents"]
    assert len(sidebar["contents"]) <= 10 and sidebar["collapse-level"] == 1
    assert [section["href"] for section in library["contents"]] == [f"library/{name}/index.ipynb" for name in PACKAGES]


@pytest.mark.parametrize("package", PACKAGES)
def test_index_page_lists_every_module(package):
    "The page of a package: what it is for in three sentences, then its modules in reading order."
    folder = ROOT / "nbs/library" / package
    text = "\n".join("".join(cell["source"]) for cell in cells(folder / "index.ipynb", "markdown"))
    listed = re.findall(r"^\| \[\w+\]\((\w+\.ipynb)\) \| \S", text, flags=re.M)
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.ipynb"))


LINK = re.compile(r"\]\(((?:\.\./)*[\w./-]+\.(?:ipynb|md|svg|cff|yaml|sh))(?:#[^)]*)?\)")


def links(path: Path) -> list[str]:
    "The files that a page links to, as written."
    notebook = path.suffix == ".ipynb"
    texts = (
        ["".join(cell["source"]) for cell in cells(path, "markdown")]
        if notebook
        else [path.read_text(encoding="utf-8")]
    )
    return [link for text in texts for link in LINK.findall(text)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *ROOT.glob("*.md")], ids=short)
def test_links_between_pages_lead_somewhere(path):
    assert [link for link in links(path) if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", RUNNERS, ids=short)
def test_links_resolve_in_executed_copies(path, settings):
    "Copies may lie anywhere, so links lead to the site; a site built offline leads to its own pages."
    pages = {re.sub(r"\b\d+[a-z0-9]*_", "", short(p).lower())[4:].replace(".ipynb", ".html") for p in NOTEBOOKS}
    site = f"{settings['doc_host']}{settings['doc_baseurl']}/"
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert links(path) == [], "relative to this notebook's folder"
    assert set(re.findall(rf"\]\({re.escape(site)}([^)#]*)", text)) <= pages


# Modules


def test_each_module_has_its_notebook():
    assert sorted(ORDER) == sorted(f"{path.parent.name}.{path.stem}" for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_module_imports_only_earlier_modules(path):
    name = f"{path.parent.name}.{path.stem}"
    assert imported(path.read_text(), path.parent.name) <= set(ORDER[: ORDER.index(name)])


def imported(text: str, package: str) -> set[str]:
    "The modules of langsamp that a source text of a package imports."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["", f"langsamp.{package}", "langsamp"][node.level]
            base = f"{base}.{node.module or ''}".strip(".")
            names = [base] if base.count(".") > 1 else [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {".".join(name.split(".")[1:3]) for name in names if name.startswith("langsamp.")}
    return found


def test_imported_finds_every_form():
    text = (
        "from ..core.files import a\nfrom . import udhr\nfrom ..data import masking\nimport langsamp.languages.codes\n"
    )
    text += "from langsamp.corpora.text import b\nfrom .lines import c\nimport re"
    wanted = "core.files corpora.udhr data.masking languages.codes corpora.text corpora.lines".split()
    assert imported(text, "corpora") == set(wanted)


# What newcomers read


def walruses(text: str) -> list[str]:
    "The assignments inside a call's arguments."
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    parts = [part for call in calls for part in [*call.args, *call.keywords]]
    return [ast.unparse(n) for part in parts for n in ast.walk(part) if isinstance(n, ast.NamedExpr)]


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_name_is_assigned_inside_a_call(path):
    assert walruses(path.read_text()) == []


def test_walruses_sees_nested_ones():
    assert walruses("f(x := 1)\ng(a, [b for b in c if (d := b)], k=(e := 2))") == ["(x := 1)", "(d := b)", "(e := 2)"]
    assert walruses("if x := f(1):\n    pass\nwhile y := g():\n    pass") == []


OLD_NAMES = yaml.safe_load((ROOT / "tests/old_names.yaml").read_text())


def identifiers(text: str) -> set[str]:
    "The names that Python code defines or uses; of attributes those that it sets, as others belong to other libraries."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        found |= {getattr(node, name) for name in ("id", "arg", "name", "asname") if hasattr(node, name)}
    return found


def test_identifiers_sees_every_form():
    text = "from a import b as c\ndef d(e, *, f=1): g.h = e.i(j=2)\nclass k: l: int = 3\nm, n = 4, 5"
    assert identifiers(text) >= set("b c d e f g h j k l m n".split()) and "i" not in identifiers(text)


def sources() -> list[Path]:
    "Every file with code, the exported modules aside."
    return [*NOTEBOOKS, *(ROOT / "tests").glob("*.py"), *(ROOT / "scripts").glob("*.py")]


@pytest.mark.parametrize("path", sorted(sources()), ids=short)
def test_no_old_name_is_left(path):
    "The old names and their replacements are in tests/old_names.yaml."
    code = [path.read_text()] if path.suffix == ".py" else ["".join(cell["source"]) for cell in cells(path)]
    plain = [re.sub(r"(?m)^[%!].*", "", text) for text in code]
    assert sorted(set().union(*map(identifiers, plain)) & OLD_NAMES.keys()) == []


@pytest.mark.parametrize("path", PARAMS, ids=short)
def test_no_parameter_has_an_old_name(path):
    assert sorted(yaml.safe_load(path.read_text()).keys() & OLD_NAMES.keys()) == []


def committed() -> list[Path]:
    "Every text file of the repository that is not generated."
    folders = "nbs langsamp params scripts tests .ci .github".split()
    folders += re.findall(r"^!(outputs/[\w-]+)/$", (ROOT / ".gitignore").read_text(), re.M)
    inside = [p for folder in folders for p in (ROOT / folder).rglob("*")]
    paths = [p for p in [*ROOT.iterdir(), *inside] if p.is_file() and not re.search("__pycache__|checkpoints/", str(p))]
    return [p for p in paths if p.suffix not in {".png", ".gz", ".xz", ".zst", ".npz"}]


@pytest.mark.parametrize("path", sorted(committed()), ids=short)
def test_no_trace_of_one_machine(path):
    assert [line for line in path.read_text().splitlines() if re.search(LOCAL, line)] == []


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))


def make_targets(text: str) -> set[str]:
    "The targets of `make` that a text names."
    return set(re.findall(r"\bmake ([a-z-]+)", text))


def missing_paths(text: str) -> list[str]:
    "Paths that a text names and that do not exist; params/mine* are the user's."
    named = set(re.findall(r"(?<![\w/])(?:nbs|params|scripts|tests|langsamp)/[\w./-]+\w", text))
    ours = [path for path in sorted(named) if not path.startswith("params/mine")]
    return [path for path in ours if not (ROOT / path).exists()]


def test_readme_commands_exist():
    text = (ROOT / "README.md").read_text()
    assert {"run", "test"} <= make_targets(text) <= TARGETS
    assert missing_paths(text) == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_contributing_commands_exist(name):
    "Targets and paths that contributors read of."
    text = (ROOT / name).read_text()
    assert {"test", "export"} <= make_targets(text) <= TARGETS
    assert missing_paths(text) == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=short)
def test_workflow_calls_targets_that_exist(path, settings):
    "It parses, and sets up the oldest Python that is supported."
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    called = [make_targets(step["run"]) for step in steps if "run" in step]
    assert called and all(targets and targets <= TARGETS for targets in called)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    (python,) = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert python == settings["min_python"]


def test_there_are_workflows_for_tests_and_docs():
    called = {path.stem: make_targets(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
    assert called == {"test": {"test"}, "docs": {"docs"}}


def test_smoke_is_what_the_notebook_and_the_library_default_to():
    "Except that the file, which says which loss to expect, has one precision on all machines."
    written = yaml.safe_load((ROOT / "params/smoke.yaml").read_text())
    assert PretrainParams(**tiny.defaults_of("03_pretrain")) == PretrainParams()
    assert PretrainParams().precision == "auto" and written["precision"] == "fp32"
    assert PretrainParams.model_validate(written | {"precision": "auto"}) == PretrainParams()


def test_baseline_differs_in_its_variant_only():
    ours, baseline = [yaml.safe_load((ROOT / f"params/udhr{end}.yaml").read_text()) for end in ("", "-baseline")]
    assert {name for name in ours if ours[name] != baseline[name]} == {
        "run_name",
        "variant",
    } and ours.keys() == baseline.keys()
