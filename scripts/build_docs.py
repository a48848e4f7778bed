"""Build the docs site in _docs/, offline: nbdev filters the notebooks, smalldocs renders the pages.

    python scripts/build_docs.py

Executed copies of notebooks under outputs/ are added to the sidebar. Nothing is run, and no page loads
anything from another site.
"""

import html
import json
import os
import re
import shutil
import sys
from pathlib import Path

import yaml
from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.processors import FilterDefaults
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from nbdev.serve_drv import main as filter_notebook
from smalldocs.site import build

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"(?<![^/\s])\d+[a-z0-9]*_"  # `00_` of `library/00_core.ipynb`: nbdev's page names go without
LINK = r"(?<=\]\()[^)\s:]+\.ipynb"
EXTERNAL = r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^>]*>(?:</script>)?'
FORMULA = r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>'
DISPLAY = {"inline": "inline", "display": "block"}


def add_results(proc: Path) -> list[dict[str, str]]:
    "Filter papermill's copies into `proc`, each beside its source so that links work; return sidebar entries."
    entries = []
    for path in sorted(ROOT.glob("outputs/*/*.ipynb"), key=lambda p: (p.parent.name != "figures", p)):
        notebook = json.loads(path.read_text())
        facts = notebook["metadata"].get("papermill", {})
        source = (ROOT / facts.get("input_path", "")).resolve()
        if facts.get("exception") or not source.is_relative_to(ROOT / "nbs"):
            continue
        label = path.parent.name if source.stem.endswith(path.stem) else path.stem
        label = "results" if label == "figures" else label
        page = source.relative_to(ROOT / "nbs").with_name(f"{source.stem}-{label}.ipynb")
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        first["source"] = re.sub(r"\A# (.*)", rf"# \1: {label}", "".join(first["source"]))
        (proc / page).write_text(json.dumps(notebook))
        filter_notebook((proc / page, proc / page, FilterDefaults))
        entries.append({"href": str(page)})
    return entries


def write_sidebar(proc: Path, results: list[dict[str, str]]) -> None:
    "Add executed notebooks at the end of the sidebar, and replace file names by page names."
    sidebar = yaml.safe_load((proc / "sidebar.yml").read_text())
    if results:
        sidebar["website"]["sidebar"]["contents"].append({"section": "Executed notebooks", "contents": results})
    (proc / "sidebar.yml").write_text(re.sub(NUMBER, "", yaml.safe_dump(sidebar, sort_keys=False)))


def join_streams(outputs: list[dict]) -> list[dict]:
    "Join consecutive outputs of one stream to a single output."
    joined: list[dict] = []
    for output in outputs:
        if joined and output.get("name") and output["name"] == joined[-1].get("name"):
            joined[-1]["text"] = "".join([*joined[-1]["text"], *output["text"]])
        else:
            joined.append(output)
    return joined


def page_links(text: str, up: str) -> str:
    "Lead links between notebooks to pages: `/nbs/library/00_core.ipynb`, from the checkout's root, becomes relative."
    text = re.sub(r"(?<=\]\()/nbs/(?=[^)\s:]+\.ipynb)", up, text)
    return re.sub(LINK, lambda m: re.sub(NUMBER, "", m[0]), text)


def name_pages(proc: Path) -> None:
    "Rename each notebook to the name in nbdev's links, and change links between notebooks accordingly."
    for path in sorted(proc.rglob("*.ipynb")):
        notebook = json.loads(path.read_text())
        up = "../" * (len(path.relative_to(proc).parts) - 1)
        for cell in notebook["cells"]:
            text = page_links("".join(cell["source"]), up)
            if cell["cell_type"] == "code":
                cell["outputs"] = join_streams(cell["outputs"])
            cell["source"] = re.sub(r"(?m)^output-file:.*\n", "", text) if cell["cell_type"] == "raw" else text
        path.unlink()
        path.with_name(re.sub(NUMBER, "", path.name.lower())).write_text(json.dumps(notebook))


def make_standalone(page: Path, site: Path, address: str) -> None:
    "Make a page independent of other sites: MathML for formulas, relative links to own pages, no external resources."
    text = re.sub(EXTERNAL, lambda m: "" if "katex" in m[0] else m[0], page.read_text(encoding="utf-8"))
    text = re.sub(FORMULA, lambda m: convert(html.unescape(m[2]), display=DISPLAY[m[1]]), text, flags=re.S)
    up = "../" * (len(page.relative_to(site).parts) - 1)
    page.write_text(text.replace(f'href="{address}/', f'href="{up}'), encoding="utf-8")


def external_requests(site: Path) -> list[str]:
    "List what the pages and style sheets of `site` would load from other sites."
    pages = {path: re.findall(EXTERNAL, path.read_text()) for path in site.rglob("*.html")}
    sheets = {path: re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)", path.read_text()) for path in site.rglob("*.css")}
    return [f"{path.relative_to(site)} loads {what}" for path, whats in (pages | sheets).items() for what in whats]


def main() -> int:
    "Build the site; return 1 if it has a broken link or would load something from another site."
    os.chdir(ROOT)
    refresh_quarto_yml()
    proc = Path(proc_nbs(force=True, n_workers=0))
    results = add_results(proc)
    write_sidebar(proc, results)
    name_pages(proc)
    built = build(proc, quiet=True)
    site, config = proc / "_docs", get_config()
    for page in site.rglob("*.html"):
        make_standalone(page, site, config.doc_host + config.doc_baseurl)
    for sheet in site.rglob("*.css"):
        sheet.write_text(re.sub(r"@import url\(https?:[^)]*\);?", "", sheet.read_text()))
    problems = [*built.warnings, *external_requests(site)]
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    site.rename(ROOT / "_docs")
    shutil.rmtree(proc)
    print(f"docs: {len(list((ROOT / '_docs').rglob('*.html')))} pages, open _docs/index.html")
    print(*(f"docs: {problem}" for problem in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
