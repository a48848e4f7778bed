"""Papermill in a forked process that has everything imported, its kernel replaced by a shell in that process.

Starting papermill and a kernel takes 13 seconds of CPU, most of them imports; `tiny.papermill_command` does it where
the start itself is tested. Parameters, the order of cells and the written notebook are papermill's in both.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from execnb.shell import CaptureShell
from nbformat import NotebookNode, from_dict
from papermill.cli import papermill
from papermill.engines import Engine, papermill_engines


class ShellEngine(Engine):
    "Runs the cells of a notebook in this process."

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
        shell = CaptureShell(mpl_format="png")  # As a kernel does
        for number, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != "code":
                continue
            nb_man.cell_start(cell, number)
            cell.outputs = [from_dict(output) for output in shell.run(cell.source)]
            if shell.exc:
                return nb_man.cell_exception(cell, number, exception=shell.exc)
            nb_man.cell_complete(cell, number)


def printed(node: NotebookNode) -> Iterator[str]:
    "What the cells of a notebook printed."
    for cell in node.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield output.text


def run(words: list[str], environment: dict[str, str], folder: Path, log: Path) -> None:
    "Give papermill's command in this process, which was forked for it; messages go to a file."
    os.chdir(folder)
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    papermill_engines.register("shell", ShellEngine)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            papermill([*words, "--engine", "shell"])
        except Exception:
            traceback.print_exc()
            sys.exit(1)
