"""Preparing text in many made-up languages of twelve lines, planning a run and training it: a row of a table.

python scripts/many_languages.py 7000 --table outputs/languages.csv
With PYTHONPATH set to another checkout, that checkout is measured; --label names it in the table.
"""

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pycountry

from langsamp.languages.codes import parse_code
from langsamp.params.pretrain import PlanParams, PretrainParams
from langsamp.training.plan import plan
from langsamp.training.prepare import prepare, training_data
from langsamp.training.pretrain import pretrain

FIRST = {"Latn": "a", "Cyrl": "а", "Arab": "ب", "Deva": "क", "Grek": "α", "Hebr": "א", "Thai": "ก", "Ethi": "ሀ"}
SCRIPTS = tuple(FIRST)  # Sixteen letters of each, from this one on
SPECIAL = {"mis", "mul", "und", "zxx"}  # ISO 639-3's codes for no language in particular
SIZES = {"vocab_size": 1000, "max_seq_length": 64, "num_layers": 1, "hidden_size": 32, "max_steps": 40}


def write_text(folder: Path, languages: int, lines: int = 12) -> None:
    "Write that many languages of a few lines, the same ones each time."
    isos = [language.alpha_3 for language in pycountry.languages if language.alpha_3 not in SPECIAL]
    scripts = SCRIPTS if languages > 7000 else SCRIPTS[:1]
    codes = sorted({str(parse_code(f"{iso}_{script}")) for script in scripts for iso in isos})[:languages]
    assert len(codes) == languages, f"{len(codes)} languages at most"
    folder.mkdir()
    for number, code in enumerate(codes):
        draw = random.Random(number)
        letters = [chr(ord(FIRST[code[-4:]]) + place) for place in range(16)]
        words = ["".join(draw.choice(letters) for _ in range(draw.randint(2, 7))) for _ in range(40)]
        text = "".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(lines))
        (folder / f"{code}.txt").write_text(text, encoding="utf-8")


def files_under(folder: Path) -> int:
    "The number of files in a folder and its subfolders."
    return sum(len(files) for _, _, files in os.walk(folder))


def cpu_seconds(job: Callable[[], Any]) -> float:
    "The seconds of the processor that a job takes."
    start = time.process_time()
    job()
    return time.process_time() - start


def measure(languages: int, scratch: Path) -> dict[str, float]:
    "Prepare the text, open it as training data, read every sequence, prepare it again, plan a run and train it."
    write_text(scratch / "text", languages)
    given = {"corpus": str(scratch / "text"), "languages": [], "run_name": "many", **SIZES}
    p = PretrainParams.model_validate(given)
    wall, cpu = time.perf_counter(), time.process_time()
    corpus = prepare(p, scratch / "outputs")
    row = {"seconds": time.perf_counter() - wall, "CPU seconds": time.process_time() - cpu}
    train = training_data(p, corpus).train
    for number in range(len(train)):
        train[[number]]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    row |= {"files": files_under(scratch / "outputs/data"), "mappings": maps.count(str(scratch / "outputs/data"))}
    row |= {"CPU seconds again": cpu_seconds(lambda: prepare(p, scratch / "outputs"))}
    row |= {"CPU seconds of a plan": cpu_seconds(lambda: plan(PlanParams(overrides=given), scratch / "outputs"))}
    row |= {"CPU seconds of a run": cpu_seconds(lambda: pretrain(p, scratch / "outputs"))}
    return row | {"peak memory (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    "Measure once, and add the row to a table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("languages", type=int)
    parser.add_argument("--label", default="bundles", help="names the code that is measured")
    parser.add_argument("--table", type=Path, help="a CSV file to which the row is added")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        row = {"layout": given.label, "languages": given.languages, **measure(given.languages, Path(scratch))}
    print(row)
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        earlier = pd.read_csv(given.table) if given.table.exists() else pd.DataFrame()
        pd.concat([earlier, pd.DataFrame([row])]).round(1).to_csv(given.table, index=False)


if __name__ == "__main__":
    main()
