"""How JupyterLab in .venv saves notebooks; scripts/setup.sh installs this file.

Each is cleaned, as `nbdev_clean` does. The notebooks that are there to be run (nbs/0*.ipynb, figures, tutorials) stay
as they are committed if nothing but outputs would change; the run notebook is saved as outputs/notebooks/NAME.ipynb.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from nbdev.clean import clean_jupyter

from langsamp.core.files import outputs_folder, repo_root, write_text

TO_RUN = ("nbs/0*.ipynb", "nbs/figures/*.ipynb", "nbs/tutorials/*.ipynb")


def edited_parts(notebook: dict[str, Any]) -> list[tuple[Any, ...]]:
    "What a person edits: type, source and tags of each cell."
    cells = notebook["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in cells]


def committed(file: Path) -> dict[str, Any] | None:
    "A notebook as git has it; `None` for one that git does not have, or that is not there to be run."
    if not any(file.match(pattern) for pattern in TO_RUN):
        return None
    found = subprocess.run(["git", "cat-file", "blob", f":./{file.name}"], cwd=file.parent, capture_output=True)
    return json.loads(found.stdout) if found.returncode == 0 else None


def save(model: dict[str, Any], path: str, contents_manager: Any) -> None:
    "Clean a notebook, and keep the committed outputs of one that was only run."
    clean_jupyter(path=path, model=model)
    file = Path(contents_manager.root_dir).resolve() / path
    kept = committed(file) if model["type"] == "notebook" else None
    if kept is None or edited_parts(kept) != edited_parts(model["content"]):
        return
    copy = outputs_folder() / "notebooks" / file.relative_to(repo_root(file.parent) / "nbs")
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_text(copy, json.dumps(model["content"], indent=1, ensure_ascii=False) + "\n")
    model["content"] = kept


c.ContentsManager.pre_save_hook = save  # noqa: F821
