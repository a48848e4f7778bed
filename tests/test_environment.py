"Only parameters determine a result: tests of params files, shells, launchers, locales and file systems."

import ast
import errno
import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import tiny
import transformers

import langsamp
from langsamp.core.environment import IGNORED_VARIABLES, UNSUPPORTED_ENGINES, ignore_overriding_variables, read_launch
from langsamp.core.errors import UserError
from langsamp.core.files import explain_disk_errors, write_json
from langsamp.core.manifests import atomic_folder, find_damage
from langsamp.corpora import mediawiki, udhr
from langsamp.encoding import open_encoder as encoders
from langsamp.evaluation import results
from langsamp.model import adapt_checkpoint, backbones
from langsamp.model import e5_small as e5small
from langsamp.params.base import from_notebook
from langsamp.params.benchmark import BenchmarkParams, CorpusPassParams, EncodingSpeedParams, TrainingSpeedParams
from langsamp.params.evaluate import EmbeddingMapParams, ReproductionParams, TableParams
from langsamp.params.pretrain import AdaptParams, CorpusBuildParams, PretrainingFigureParams, PretrainParams
from langsamp.params.yaml_reader import read_yaml
from langsamp.tokenization import train
from langsamp.training import distributed, run_dir, shard_tasks
from langsamp.training import pretrain as pretraining
from langsamp.training.pretrain import main


def refusal(call, *arguments, **words) -> str:
    "Return the error message of a call, as its user reads it."
    with pytest.raises(UserError) as error:
        call(*arguments, **words)
    return str(error.value)


# Params files are read strictly


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_steps: 2\nvariant: baseline\nmax_steps: 3\n", ["line 3", "`max_steps`", "line 1"]),
        ("overrides:\n  seed: 1\n  seed: 1\n", ["line 3", "`seed`", "line 2"]),
        ("variant: none\nseed: 010\n", ["line 2", "010", "8"]),
        ("seed: [1, 0x1F]\n", ["line 1", "0x1F", "31"]),
        ("max_steps: 1:30\n", ["line 1", "1:30", "90"]),
        ("share: 1:30.5\n", ["line 1", "1:30.5"]),
        ("max_steps: 0b11\n", ["line 1", "0b11", "3"]),
        ("variant: none\n1: 2\n", ["line 2", "`1`"]),
        ("overrides: {2: 3}\n", ["line 1", "`2`"]),
        ("? [a, b]\n: 1\n", ["line 1", "name"]),
        ("a: &x [1]\nb: *x\n", ["line 2", "anchor"]),
        ("a: [\n", ["line 2"]),
        ("a: 1\n---\nb: 2\n", ["line 2"]),
        ("a: " + 2000 * "[" + "\n", ["nested"]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_params_file_is_refused_with_its_line(tmp_path, text, words):
    "Duplicate names, ambiguous numbers, numbers as names and anchors: file, line and reason."
    (tmp_path / "p.yaml").write_text(text)
    message = refusal(read_yaml, tmp_path / "p.yaml")
    assert [word for word in [str(tmp_path / "p.yaml"), *words] if word not in message] == [] and "\n" not in message


def test_alias_bomb_is_refused_in_a_line(tmp_path, capsys):
    "266 bytes that would expand to a message of 254 MB."
    levels = "".join(f"{name}: &{name} [{9 * f'*{inner},'}]\n" for inner, name in zip("abcdefg", "bcdefgh"))
    (tmp_path / "p.yaml").write_text(f"a: &a [{9 * 'x,'}]\n{levels}")
    assert main([str(tmp_path / "p.yaml"), str(tmp_path / "outputs")]) == 2
    message = capsys.readouterr().err
    assert len(message) < 500 and message.count("\n") == 1 and "line 2" in message


def test_unambiguous_numbers_are_accepted(tmp_path):
    "Decimal numbers with a sign or underscores are accepted; so is a quoted one that begins with 0."
    (tmp_path / "p.yaml").write_text("a: -1\nb: 10_000\nc: '010'\nd: 010.5\ne: 1.0e-3\nf: 0\n")
    assert read_yaml(tmp_path / "p.yaml") == {"a": -1, "b": 10_000, "c": "010", "d": 10.5, "e": 1.0e-3, "f": 0}


@pytest.mark.parametrize("value", [[[9 * [9 * [9 * [9 * ["x"]]]]]], "x" * 100_000, {"x" * 100_000: 1}, 10**4000])
def test_message_about_a_large_value_is_short(value):
    "A message shows only the beginning of a value."
    for values in (
        {"max_steps": value},
        {"variant": value},
        {"run_name": value},
        {"languages": value},
        {"x" * 9999: value},
    ):
        assert len(refusal(PretrainParams.model_validate, values)) < 1500


@pytest.mark.parametrize(
    "name",
    [
        ".git",
        "-rf",
        "..",
        ".",
        "_a",
        "evaluations",
        "Data",
        "logs",
        "benchmarks",
        "published",
        "reproductions",
        300 * "a",
        "e5-small",
    ],
)
def test_run_name_that_is_refused(name):
    "Hidden folders, options, folders of all runs, and names that no file system accepts."
    assert "run_name" in refusal(PretrainParams, run_name=name)


@pytest.mark.parametrize("name", [".git", "-rf", 300 * "a", 100 * "क"])
@pytest.mark.parametrize(
    "kind", [CorpusBuildParams, AdaptParams, PretrainingFigureParams, EmbeddingMapParams, ReproductionParams]
)
def test_other_names_that_are_refused(kind, name):
    "The same rule for every name that becomes a folder or a file."
    assert "name must" in refusal(kind, name=name)


@pytest.mark.parametrize("value", [2**32, 2**64 - 1, 2**64, -1, 10**30])
@pytest.mark.parametrize("kind", [PretrainParams, AdaptParams, EmbeddingMapParams])
def test_seed_that_some_generator_does_not_accept(kind, value):
    "All generators accept 32 bits."
    message = refusal(kind, seed=value)
    assert "seed" in message and "must" in message


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PretrainParams, {"max_steps": 2**63}),
        (PretrainParams, {"max_seq_length": 10**30}),
        (TableParams, {"layer": -2}),
        (PretrainingFigureParams, {"layer": -2}),
        (ReproductionParams, {"layer": -2}),
        (TrainingSpeedParams, {"seconds": float("nan")}),
        (TrainingSpeedParams, {"seconds": -1.0}),
        (EncodingSpeedParams, {"seconds": float("inf")}),
        (CorpusPassParams, {"gigabytes": 0.0}),
        (BenchmarkParams, {"learning_rate": float("nan")}),
    ],
    ids=str,
)
def test_number_out_of_its_range(kind, values):
    "Each is refused by its name."
    assert next(iter(values)) in refusal(kind.model_validate, values)


def test_mistakes_of_every_kind_are_reported_together():
    "Unknown names, types and conflicts in one message; nothing that only follows from another mistake."
    values = {
        "max_stepps": 1,
        "seed": "x",
        "global_batch_size": "16",
        "micro_batch_size": 7,
        "variant": "x",
        "torch_compile": "yes please",
    }
    message = refusal(PretrainParams.model_validate, values)
    words = [
        "`max_stepps`",
        "`seed` must",
        "`global_batch_size` must",
        "variant must",
        "`torch_compile` must",
        "valid parameters",
    ]
    assert [word for word in words if word not in message] == []
    assert "multiple" not in message


def test_value_that_is_not_plain_is_not_dropped():
    "A NumPy integer in the parameters cell is refused, not replaced by the default."
    import numpy as np

    assert "`max_steps` must be a whole number" in refusal(from_notebook, PretrainParams, {"max_steps": np.int64(5)})
    assert from_notebook(PretrainParams, {"max_steps": 5, "np": np, "warmup_steps": 0}).max_steps == 5


# papermill's strings


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"languages": '["eng_Latn"]'}, "-y 'languages: [\"eng_Latn\"]'"),
        ({"torch_compile": "true"}, "-y 'torch_compile: true'"),
        ({"run_name": 2024}, "-r run_name 2024"),
        ({"run_name": True}, "-r run_name True"),
        ({"variant": None}, "-r variant None"),
        ({"max_steps": "100"}, "-p max_steps 100"),
        ({"learning_rate": "1.0e-3"}, "-p learning_rate 1.0e-3"),
        ({"languages": "eng_Latn"}, "-y 'languages: [eng_Latn]'"),
    ],
    ids=str,
)
def test_the_hint_for_papermill_works(values, form):
    "The message gives an option that papermill reads as intended."
    assert form in refusal(PretrainParams.model_validate, values)


def test_a_params_file_for_papermill_is_read_strictly_too(tmp_path):
    "`papermill -f` itself accepts the file; the notebook reads it again, and stops in its second cell."
    (tmp_path / "p.yaml").write_text("max_steps: 2\nseed: 010\n")
    command = [sys.executable, "-m", "papermill", str(tiny.ROOT / "nbs/03_pretrain.ipynb"), str(tmp_path / "out.ipynb")]
    command += ["-f", "p.yaml", "--no-progress-bar"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=120)
    assert done.returncode != 0 and "p.yaml: line 2: YAML reads `010` as 8" in done.stderr


# Commands

SHARDS = ["p.yaml", "--task", "0", "--of", "1"]


@pytest.mark.parametrize(
    "words",
    [
        ["p.yaml", "out", "more"],
        ["p.yaml", "--steps"],
        ["p.yaml", "--steps", "5"],
        ["--steps", "p.yaml"],
        [],
        ["p.yaml", ""],
    ],
    ids=" ".join,
)
def test_unknown_arguments_of_pretraining_are_refused(tmp_path, capsys, monkeypatch, words):
    "Earlier they were ignored, or a folder named `--steps` was made."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("max_steps: 1\n")
    assert main(words) == 2
    assert "usage: python -m langsamp.training.pretrain params/NAME.yaml [OUTPUTS]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize("more", ["more", "--step 2", "--out x", "--outputs=--steps", "--task=0"])
def test_unknown_arguments_of_a_shard_task_are_refused(tmp_path, capsys, monkeypatch, more):
    "Extra, unknown, shortened and repeated ones."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("corpus: nowhere\n")
    try:
        assert shard_tasks.main([*SHARDS, *more.split()]) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert "no corpus" not in (message := capsys.readouterr().err) and ("usage:" in message or "repeated" in message)
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


def test_every_command_refuses_unknown_arguments():
    "Every module that runs with `python -m` passes its arguments to the function that refuses unknown ones."
    for path in sorted(Path(langsamp.__path__[0]).rglob("*.py")):
        if "sys.argv" in (text := path.read_text(encoding="utf-8")) and '"__main__"' in text:
            assert "positional_arguments(" in text or path.match("benchmark/corpus.py") or path.match("cli/main.py"), (
                path
            )


def test_outputs_are_where_the_variable_says(tmp_path, monkeypatch):
    "Without a second word the command writes under LANGSAMP_OUTPUTS, as notebooks do."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path / "there"))
    monkeypatch.setattr(pretraining, "pretrain", lambda p, outputs: (tmp_path / "outputs").write_text(str(outputs)))
    (tmp_path / "p.yaml").write_text("max_steps: 60\n")
    assert main([str(tmp_path / "p.yaml")]) == 0
    assert (tmp_path / "outputs").read_text() == str(tmp_path / "there")


# Variables of accelerate, torch and transformers

HARMLESS = {  # Where and how loudly a process works; what only a refused engine, or an unused option, reads
    "USE_FSDP", "USE_CPU", "TORCH_DEVICE", "CPU_AFFINITY", "NUM_PROCESSES", "DEBUG_MODE", "DEBUG_RDV_FILE", "LOG_LEVEL",
    "ENABLE_RICH", "BYPASS_DEVICE_MAP", "INIT_INCLUDE_BUFFERS", "ALLOW_CP_STANDALONE", "GRADIENT_CLIPPING",
    "CONFIG_DS_FIELDS", "SAGEMAKER_DISTRIBUTED_TYPE", "DYNAMO_MODE", "DYNAMO_USE_DYNAMIC", "DYNAMO_USE_FULLGRAPH",
    "DYNAMO_USE_REGIONAL_COMPILATION", "FP8_BACKEND", "FP8_OPT_LEVEL", "DYNAMO_", "FP8_", "",
}  # fmt: skip


def test_every_variable_of_accelerate_is_known():
    "Overridden, refused, or of no effect on a result: a new release of accelerate with a new variable fails here."
    found = set()
    for path in Path(accelerate.__path__[0]).rglob("*.py"):
        if not {"test_utils", "commands"} & set(path.parts):
            found |= set(re.findall(r"[\"']ACCELERATE_([A-Z0-9_]*)[\"']", path.read_text(encoding="utf-8")))
    known = {name.removeprefix("ACCELERATE_") for name in (*IGNORED_VARIABLES, *UNSUPPORTED_ENGINES)} | HARMLESS
    assert len(found) > 20
    assert [name for name in sorted(found - known) if not name.startswith("DEEPSPEED_")] == []


def test_a_variable_left_in_the_shell_changes_no_weight(new_run, unbroken, outputs):
    "With the command: the same weights bit for bit, and a message that names every variable and what overrides it."
    shell = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"}
    shell |= {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "TORCH_COMPILE_DISABLE": "1"}
    params, run = new_run("shell")
    done = subprocess.run(tiny.command(params, outputs), env=os.environ | shell, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert [f"{name}={value}" for name, value in shell.items() if done.stderr.count(f"{name}={value} in") != 1] == []
    assert tiny.fingerprint(run) == tiny.fingerprint(unbroken)


@pytest.mark.parametrize("name", IGNORED_VARIABLES)
def test_variable_is_taken_out_and_named(name, capsys):
    "Where it would change something; the neutral values that `accelerate launch` sets cause no message."
    shell = {name: "4", "HOME": "/"}
    assert len(ignore_overriding_variables(shell)) == 1 and shell == {"HOME": "/"}
    assert f"{name}=4" in capsys.readouterr().err
    assert (
        ignore_overriding_variables({name: IGNORED_VARIABLES[name][0][0].upper()})
        == ignore_overriding_variables({name: ""})
        == []
    )
    assert capsys.readouterr().err == ""


def test_a_notebook_overrides_them_too(monkeypatch, capsys):
    "Where the parameters are read, before torch is."
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    from_notebook(PretrainParams, {})
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1" in capsys.readouterr().err
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ


# Launchers

FULL = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "no RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT", "unset"]),
        ({"WORLD_SIZE": ""}, ["WORLD_SIZE=", "no RANK", "unset"]),
        ({"WORLD_SIZE": "4"}, ["WORLD_SIZE=4", "no RANK", "unset"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["RANK=0 WORLD_SIZE=2", "no LOCAL_RANK, MASTER_ADDR", "unset"]),
        (FULL | {"WORLD_SIZE": ""}, ["WORLD_SIZE= ", "whole numbers"]),
        (FULL | {"MASTER_PORT": "http"}, ["MASTER_PORT=http", "whole numbers"]),
        (FULL | {"RANK": "-1"}, ["RANK=-1", "whole numbers"]),
        (FULL | {"RANK": "2"}, ["RANK=2", "are inconsistent"]),
        (FULL | {"LOCAL_RANK": "1"}, ["LOCAL_RANK=1", "are inconsistent"]),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, ["PMI_SIZE=4", "no LOCAL_RANK", "torchrun"]),
    ],
    ids=str,
)
def test_leftover_of_a_launcher_is_named(shell, words):
    "Together with those that are missing, and what to do."
    message = refusal(read_launch, shell)
    assert [word for word in words if word not in message] == []


def test_complete_launch_is_accepted():
    "Torchrun's variables and MPI's; and what is no launch."
    assert read_launch(FULL) == (0, 2, "127.0.0.1:29500")
    mpi = {f"OMPI_COMM_WORLD_{name}": value for name, value in {"RANK": "1", "LOCAL_RANK": "1", "SIZE": "2"}.items()}
    assert read_launch(mpi | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == (1, 2, "a:1")
    assert (
        read_launch({})
        is read_launch({"PMI_SIZE": "1"})
        is read_launch({"MASTER_ADDR": "a", "MASTER_PORT": "1"})
        is None
    )


def in_shell(shell: dict[str, str], log: Path, patience: float = 5.0) -> None:
    "Give a process variables, and write its messages to a file."
    os.environ |= shell
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    distributed._meeting.__wrapped__.__defaults__ = (patience,)


@pytest.mark.parametrize(
    ("shell", "word"),
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE="),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "training with DeepSpeed is not supported"),
    ],
    ids=str,
)
def test_a_run_with_leftovers_ends_with_a_message(new_run, outputs, tmp_path, shell, word):
    "By the command's main: status 2, one line, no traceback, no folder."
    params, run = new_run("leftover")
    assert tiny.exit_code(tiny.fork(params, outputs, in_shell, shell, tmp_path / "log")) == 2
    message = (tmp_path / "log").read_text(encoding="utf-8")
    assert word in message and "Traceback" not in message and not run.exists()


def test_an_address_that_is_taken_is_named(new_run, outputs, tmp_path):
    "If the processes cannot connect, the message names the address."
    params, run = new_run("taken")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        shell = FULL | {"MASTER_PORT": (port := str(taken.getsockname()[1]))}
        assert tiny.exit_code(tiny.fork(params, outputs, in_shell, shell, tmp_path / "log")) == 2
    message = (tmp_path / "log").read_text(encoding="utf-8")
    assert (
        f"2 processes did not meet at 127.0.0.1:{port}" in message and "Traceback" not in message and not run.exists()
    )


def test_a_waiting_process_reports_what_it_waits_for(new_run, outputs, tmp_path):
    "RANK=0 with WORLD_SIZE=2 and no other process."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shell = FULL | {"MASTER_PORT": str(free.getsockname()[1])}
    params, _ = new_run("waiting")
    process = tiny.fork(params, outputs, in_shell, shell, log := tmp_path / "log", 0.1)
    try:
        tiny.wait_for(lambda: log.exists() and "waits at" in log.read_text(encoding="utf-8"), process.is_alive)
        assert f"process 0 of 2 waits at 127.0.0.1:{shell['MASTER_PORT']}" in log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.join(10)


# Locales


def test_a_diff_in_any_encoding_is_recorded(tmp_path, monkeypatch):
    "A Latin-1 byte in the diff of the checkout, which is not UTF-8."
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid", "-C", str(tmp_path)]
    (tmp_path / "__init__.py").write_bytes(b"caf\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(run_dir, "langsamp", SimpleNamespace(__path__=[str(tmp_path)]))
    assert run_dir.provenance()["git"]["uncommitted"] == ""
    (tmp_path / "__init__.py").write_bytes(b"caf\xe9\n")
    assert len(run_dir.provenance()["git"]["uncommitted"]) == 12


def test_every_text_file_has_an_encoding():
    "In the library; ruff's PLW1514 sees most of the others."
    assert [hole for path in sorted(Path(langsamp.__path__[0]).rglob("*.py")) for hole in without_encoding(path)] == []


def without_encoding(path: Path) -> list[str]:
    "Calls that would read or write text in the encoding of the locale."
    found = []
    for call in (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)):
        name, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        owner, _, end = name.rpartition(".")
        mode = "".join([*map(ast.unparse, call.args[1:2]), words.get("mode", "")])
        text = (owner and end in ("read_text", "write_text")) or (name in ("open", "os.fdopen") and "b" not in mode)
        text = text or (owner == "subprocess" and "text" in words)
        if text and "encoding" not in words:
            found.append(f"{path.name}:{call.lineno}: {ast.unparse(call)[:80]}")
    return found


@pytest.fixture(scope="module")
def western(tmp_path_factory) -> dict[str, str]:
    "A shell with the locale ISO-8859-1; where it cannot be made, with one of ASCII."
    name, folder = "en_US.ISO-8859-1", tmp_path_factory.mktemp("locales")
    if shutil.which("localedef"):
        subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)], capture_output=True)
    shell = {"LOCPATH": str(folder), "LC_ALL": name} if (folder / name).exists() else {"LC_ALL": "C"}
    return os.environ | shell | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_run_under_another_locale(corpus, unbroken, western, tmp_path):
    "The same tokenizer, and the same weights, to the bit."
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, run_name="western"))
    done = subprocess.run(tiny.command(params, tmp_path), env=western, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert tiny.fingerprint(tmp_path / "western") == tiny.fingerprint(unbroken)


def test_names_in_another_locale(western):
    "Any text can be printed; a folder that the locale cannot name is refused with a fix."
    code = """from langsamp.core.environment import escape_unencodable_output
from langsamp.core.errors import UserError
from langsamp.params.pretrain import PretrainParams
escape_unencodable_output()
try:
    PretrainParams(run_name="\\u0431")
except UserError as error:
    print("\\u0431", error)"""
    done = subprocess.run([sys.executable, "-c", code], env=western, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.count(rb"\u0431") == 2 and b"PYTHONUTF8=1" in done.stdout


# File systems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_system_that_cannot_flush(tmp_path, monkeypatch, number):
    "Files are written although they cannot be flushed: folders with manifests, JSON files, results, files of the Hub."
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with atomic_folder(tmp_path / "folder") as part:
        (part / "a").write_text("a")
    assert not find_damage(tmp_path / "folder")
    results.Results(tmp_path / "rows.jsonl").add(("eng_Latn", 0, "x"), [{"value": 1.0}])
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        write_json(tmp_path / "a.json", 1)


def test_only_core_files_flushes_and_only_core_locks_locks():
    "No module calls os.fsync or makes a FileLock of its own."
    root = Path(langsamp.__path__[0])
    ours = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert [name for name, text in ours.items() if "os.fsync(" in text] == ["core/files.py"]
    assert [name for name, text in ours.items() if " FileLock(" in text] == ["core/locks.py"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks(corpus, tmp_path, capsys, monkeypatch, number):
    "With the command: status 2, and a message with the advice to move outputs."

    def refuse(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, run_name="unlocked"))
    assert main([str(params), str(tmp_path / "outputs")]) == 2
    message = capsys.readouterr().err
    assert (
        f"{tmp_path}/outputs/unlocked has no file locks" in message
        and "move the outputs" in message
        and "LANGSAMP_OUTPUTS" in message
    )


@pytest.mark.parametrize("shell", [{"LANGSAMP_CACHE": "/dev/null/x"}, {"HOME": "/dev/null"}], ids=str)
def test_cache_folder_that_cannot_be_created(shell, monkeypatch):
    "The folder and its variable are named, where the default corpus is fetched."
    for name in ("LANGSAMP_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    for fetch in (udhr.udhr_corpus, mediawiki.mediawiki_corpus, e5small.e5_small):
        message = refusal(fetch)
        assert "cannot write /dev/null/" in message and "set LANGSAMP_CACHE to another folder" in message


def closed(place: Path, number: int = errno.EACCES):
    "Imitate a library with a read-only cache: transformers wraps the error in its own."

    def refuse(*_, **__):
        try:
            raise OSError(number, os.strerror(number), str(place / "hub/x.lock"))
        except OSError as error:
            raise OSError(f"{type(error).__name__} at {place} when downloading x.") from error

    return refuse


def test_read_only_hugging_face_cache(tmp_path, monkeypatch):
    "HF_HOME is named, wherever a checkpoint or a tokenizer is fetched; not `give a Hugging Face name`."
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(adapt_checkpoint, "cached_file", closed(tmp_path / "hf"))
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", closed(tmp_path / "hf"))
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", closed(tmp_path / "hf", errno.EROFS))
    fetches = [(adapt_checkpoint.weight_checksums, "a/b"), (backbones.load_backbone, "a/b")]
    fetches += [(train.pretrained_tokenizer, "a/b", tmp_path), (encoders.open_encoder, "a/b", tmp_path)]
    for fetch, *arguments in fetches:
        message = refusal(fetch, *arguments)
        assert f"cannot write {tmp_path}/hf/hub/x.lock" in message and "set HF_HOME to another folder" in message, fetch


def test_disk_error_hint_names_the_folder_of_the_error(tmp_path, monkeypatch):
    "Not the folder of the enclosing code: a full temporary folder while outputs has space, and vice versa."
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setenv("LANGSAMP_CACHE", str(tmp_path / "cache"))

    def fill(place: Path | None) -> None:
        with explain_disk_errors(tmp_path / "outputs/run/weights"):
            raise OSError(errno.ENOSPC, "No space left on device", place and str(place))

    assert f"cannot write {scratch}/x" in refusal(fill, scratch / "x")
    assert "set LANGSAMP_CACHE to another folder" in refusal(fill, tmp_path / "cache/x")
    for place in (None, tmp_path / "outputs/run/.part-weights"):
        message = refusal(fill, place)
        assert f"cannot write {tmp_path}/outputs/run/weights" in message and "choose another outputs folder" in message


def test_a_leftover_world_size_is_recorded(monkeypatch):
    "An evaluation is not started by a launcher, so it always has one process."
    for value in ("", "many"):
        monkeypatch.setenv("WORLD_SIZE", value)
        assert run_dir.provenance()["machine"]["processes"] == 1


# Commands that are written down


SUFFIXES = {".ipynb", ".yaml", ".sh", ".py", ".md", ""}


def test_every_path_in_a_command_exists():
    "In notebooks, params files, README and Makefile: no notebook and no params file that does not exist."
    own = re.compile(r"params/mine\.yaml|(OUT|THEIR|NAME|mine)\b|\$|\*|\{")
    folders = [
        *(tiny.ROOT / "nbs").rglob("*.ipynb"),
        *(tiny.ROOT / "params").rglob("*"),
        *(tiny.ROOT / "scripts").iterdir(),
    ]
    missing = []
    for path in [*folders, tiny.ROOT / "README.md", tiny.ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8") if path.is_file() and path.suffix in SUFFIXES else ""
        for name in re.findall(r"(?<![\w/.])(?:nbs|params|scripts)/[\w./-]+\.(?:yaml|ipynb|py|sh)\b", text):
            if not own.search(name) and not (tiny.ROOT / name).exists():
                missing.append(f"{path.relative_to(tiny.ROOT)}: {name}")
    assert missing == []
