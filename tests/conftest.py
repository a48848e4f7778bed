"Fixtures that several test files share."

import gc
import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # Before torch

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import tiny  # noqa: E402

LONG = "notebooks effects statistics other_encoders distributed readme embeddings resume shard_tasks neutrality "
LONG += "new_languages battery sentences packing environment hub speedups masking result_identity geometry labelled"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Begin with the files that take longest: while one that is begun last runs, the other process has nothing to do."
    places = {f"test_{name}.py": place for place, name in enumerate(LONG.split())}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    "What is imported now stays: the garbage collector of a forked process need not look at it, nor copy its pages."
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real() -> Path:
    "The folder of evaluation sets."
    folder = Path(os.environ.get("LANGSAMP_DATA") or tiny.ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no evaluation sets: set LANGSAMP_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    "A corpus folder in three scripts."
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> Path:
    "An outputs folder whose prepared text all runs share."
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def new_run(corpus, outputs) -> Callable[..., tuple[Path, Path]]:
    "Give a run a name, and perhaps other parameters; its params file and its folder."

    def make(name: str, **overrides) -> tuple[Path, Path]:
        params = tiny.params_of(corpus, run_name=name, **overrides)
        return tiny.write_params(outputs / f"{name}.yaml", params), outputs / name

    return make


@pytest.fixture(scope="session")
def unbroken(new_run, outputs) -> Path:
    "The folder of an uninterrupted run."
    params, run = new_run("unbroken")
    assert tiny.exit_code(tiny.fork(params, outputs)) == 0
    return run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    "The outputs folder in which papermill ran nbs/03_pretrain.ipynb with its defaults."
    folder = tmp_path_factory.mktemp("smoke")
    tiny.papermill_command("nbs/03_pretrain.ipynb", folder / "pretrain.ipynb", folder)
    return folder


@pytest.fixture(scope="session")
def stock(tmp_path_factory) -> Path:
    "A tiny XLM-R with a masked-LM head, for 64 tokens, whose tokenizer knows Latin and Cyrillic letters and no others."
    return tiny.stock_checkpoint(tmp_path_factory.mktemp("stock"))
