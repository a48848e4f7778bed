"""Build the docs site in _docs/, offline: nbdev filters the notebooks, smalldocs renders the pages.

    python scripts/build_docs.py

Executed copies of notebooks under outputs/ are added to the sidebar. Nothing is run, and no page loads
anything from another site.
"""

import ast
import html
import json
import os
import re
import shutil
import sys
from collections import Counter
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
CODE_BLOCK = r"(?ms)^```.*?^```"
MARKDOWN_LINK = r"\[(`?[^\]\[`]+`?)\]\((?:https?:|[^)\s]*\.(?:ipynb|html))[^)\s]*\)"
PICTURE = r"<img\b[^>]*>"


def describe_pictures(copy: dict, source: dict) -> None:
    "Give the cells of an executed copy, which may be older, the alt texts of their source."
    lines = {cell["id"]: re.findall(r"(?m)^#\| fig-alt:.*\n", "".join(cell["source"])) for cell in source["cells"]}
    for cell in copy["cells"]:
        text = "".join(cell["source"])
        if "#| fig-alt:" not in text:
            cell["source"] = "".join([*lines.get(cell.get("id"), []), text])


def add_results(proc: Path) -> dict[str, str]:
    "Filter papermill's copies into `proc`, each beside its source so that links work; return page and source."
    sources = {}
    for path in sorted(ROOT.glob("outputs/*/*.ipynb"), key=lambda p: (p.parent.name != "figures", p)):
        notebook = json.loads(path.read_text())
        facts = notebook["metadata"].get("papermill", {})
        source = (ROOT / facts.get("input_path", "")).resolve()
        if facts.get("exception") or not source.is_relative_to(ROOT / "nbs"):
            continue
        label = path.parent.name if source.stem.endswith(path.stem) else path.stem
        label = "results" if label == "figures" else label
        page = source.relative_to(ROOT / "nbs").with_name(f"{source.stem}-{label}.ipynb")
        describe_pictures(notebook, json.loads(source.read_text()))
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        first["source"] = re.sub(r"\A# (.*)", rf"# \1: {label}", "".join(first["source"]))
        (proc / page).write_text(json.dumps(notebook))
        filter_notebook((proc / page, proc / page, FilterDefaults))
        sources[str(page)] = str(source.relative_to(ROOT / "nbs"))
    return sources


def write_sidebar(proc: Path, results: dict[str, str]) -> None:
    "Add executed notebooks at the end of the sidebar, and replace file names by page names."
    sidebar = yaml.safe_load((proc / "sidebar.yml").read_text())
    if results:
        sidebar["website"]["sidebar"]["contents"].append({"section": "Executed notebooks", "contents": [*results]})
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


def is_check(node: ast.stmt) -> bool:
    "Tell whether a statement only tests: an assert, a call of `test_…`, or a block of them."
    if isinstance(node, ast.For | ast.With):
        return all(map(is_check, node.body))
    call = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    return isinstance(node, ast.Assert) or (isinstance(call, ast.Name) and call.id.startswith("test_"))


def fold(code: str) -> str:
    "Fold a cell that has only imports or only checks, so that the reader sees what is shown."
    try:
        statements = ast.parse(code).body
    except SyntaxError:  # A magic
        return code
    for summary, kind in {
        "Imports": lambda node: isinstance(node, ast.Import | ast.ImportFrom),
        "Checks": is_check,
    }.items():
        if statements and all(map(kind, statements)):
            return f"#| code-fold: true\n#| code-summary: {summary}\n{code}"
    return code


def without_links(markdown: str) -> str:
    "Replace the links in code blocks by their text: nbdev links names in the comments of signatures too."
    return re.sub(CODE_BLOCK, lambda m: re.sub(MARKDOWN_LINK, r"\1", m[0]), markdown)


def prepare_code(cell: dict) -> None:
    "Fold what is not worth reading, and mend the outputs."
    cell["source"] = fold("".join(cell["source"]))
    cell["outputs"] = join_streams(cell["outputs"])
    for output in cell["outputs"]:
        if markdown := output.get("data", {}).get("text/markdown"):
            output["data"]["text/markdown"] = without_links("".join(markdown))


def name_pages(proc: Path) -> dict[str, str]:
    "Rename each notebook to the name in nbdev's links, change links accordingly; return new and old names."
    names = {}
    for path in sorted(proc.rglob("*.ipynb")):
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            text = re.sub(LINK, lambda m: re.sub(NUMBER, "", m[0]), "".join(cell["source"]))
            cell["source"] = re.sub(r"(?m)^output-file:.*\n", "", text) if cell["cell_type"] == "raw" else text
            if cell["cell_type"] == "code":
                prepare_code(cell)
        path.unlink()
        page = path.with_name(re.sub(NUMBER, "", path.name.lower()))
        page.write_text(json.dumps(notebook))
        names[str(page.relative_to(proc))] = str(path.relative_to(proc))
    return names


def clean_search(site: Path) -> None:
    "Take Markdown's links and backticks out of the excerpts that a search shows."
    entries = json.loads((site / "search.json").read_text(encoding="utf-8"))
    for entry in entries:
        for field in ("section", "text"):
            entry[field] = re.sub(MARKDOWN_LINK, r"\1", entry[field]).replace("`", "")
    (site / "search.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def link_sources(page: Path, site: Path, sources: dict[str, str]) -> None:
    "Let *View source* lead to the notebook under its name in the repository."
    name = str(page.relative_to(site).with_suffix(".ipynb"))
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(f"/nbs/{name}", f"/nbs/{sources[name]}"), encoding="utf-8")


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


def unreadable_pages(site: Path) -> list[str]:
    "List the pictures of `site` without a description, and the titles that several pages share."
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    titles = {path: re.findall("<title>(.*?)</title>", text)[0] for path, text in pages.items()}
    shared = Counter(titles.values())
    return [
        *(
            f"{path.relative_to(site)}: the title `{titles[path]}` is not the only one"
            for path in pages
            if shared[titles[path]] > 1
        ),
        *(
            f"{path.relative_to(site)}: a picture has no alt text; give its cell `#| fig-alt: …`"
            for path, text in pages.items()
            for picture in re.findall(PICTURE, text)
            if not re.search(r'alt="[^"]', picture)
        ),
    ]


def render(proc: Path, sources: dict[str, str]) -> list[str]:
    "Render the filtered notebooks in `proc` to `proc/_docs`; return what is wrong with the site."
    names = name_pages(proc)
    built = build(proc, quiet=True)
    site, config = proc / "_docs", get_config()
    for page in site.rglob("*.html"):
        make_standalone(page, site, config.doc_host + config.doc_baseurl)
        link_sources(page, site, {page: sources.get(name, name) for page, name in names.items()})
    for sheet in site.rglob("*.css"):
        sheet.write_text(re.sub(r"@import url\(https?:[^)]*\);?", "", sheet.read_text()))
    clean_search(site)
    return [*built.warnings, *external_requests(site), *unreadable_pages(site)]


def main() -> int:
    "Build the site; return 1 if it has a broken link, or would load something from another site."
    os.chdir(ROOT)
    refresh_quarto_yml()
    proc = Path(proc_nbs(force=True, n_workers=0))
    results = add_results(proc)
    write_sidebar(proc, results)
    problems = render(proc, results)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    (proc / "_docs").rename(ROOT / "_docs")
    shutil.rmtree(proc)
    print(f"docs: {len(list((ROOT / '_docs').rglob('*.html')))} pages, open _docs/index.html")
    print(*(f"docs: {problem}" for problem in problems), sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
