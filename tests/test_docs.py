"How the docs builder changes pages; scripts/check.sh builds the whole site."

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from nbdev.config import get_config

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import build_docs

NBS = Path(__file__).parents[1] / "nbs"


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": [text]}


def test_consecutive_outputs_are_joined():
    joined = build_docs.join_streams([stream("step 1\n"), stream("ste"), stream("p 2\n"), stream("oh\n", "stderr")])
    assert [(o["name"], "".join(o["text"])) for o in joined] == [("stdout", "step 1\nstep 2\n"), ("stderr", "oh\n")]


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "library/core.html"
    path.parent.mkdir()
    return path


def test_page_is_standalone(page, tmp_path):
    katex = '<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/katex/katex.min.css">'
    maths = r'<span class="math inline">\(a &lt; b\)</span>'
    page.write_text(f'{katex}{maths}<a href="https://site/base/library/codes.html#x">x</a>')
    build_docs.make_standalone(page, tmp_path, "https://site/base")
    text = page.read_text()
    assert "katex" not in text and "<math" in text and 'href="../library/codes.html#x"' in text
    assert build_docs.external_requests(tmp_path) == []


def test_external_requests_are_listed(page, tmp_path):
    page.write_text('<img src="https://site/a.png"><a href="https://site">a link is no request</a>')
    (tmp_path / "a.css").write_text("@import url(//fonts/a);")
    assert [problem.partition(" ")[0] for problem in build_docs.external_requests(tmp_path)] == [
        "library/core.html",
        "a.css",
    ]


# What a cell becomes


@pytest.mark.parametrize(
    ("code", "summary"),
    [
        ("import os\nfrom pathlib import Path", "Imports"),
        ("assert 1\nfor x in [1]:\n    assert x\ntest_eq(1, 1)", "Checks"),
        ("import os\nassert os", ""),
        ("x = 1\nassert x", ""),
        ("for x in [1]:\n    print(x)", ""),
        ("#| export\nimport os", "Imports"),
        ("%pip install langsamp", ""),
        ("", ""),
    ],
)
def test_imports_and_checks_are_folded(code, summary):
    folded = build_docs.fold(code)
    assert folded.endswith(code)
    assert folded.removesuffix(code) == (f"#| code-fold: true\n#| code-summary: {summary}\n" if summary else "")


def test_signatures_have_no_links_in_their_comments():
    link = "[`Packed`](https://site/base/library/data/packing.html#packed)"
    signature = f"```python\ndef f(\n    x:int, # From {link}\n)\n```\n\nSee {link}, and `a[0](b)`."
    assert build_docs.without_links(signature) == signature.replace(f"# From {link}", "# From `Packed`")


def test_copies_take_the_alt_texts_of_their_source():
    source = {"cells": [{"id": "a", "source": "#| fig-alt: Loss\nplot()"}, {"id": "b", "source": "x"}]}
    copy = {"cells": [{"id": "a", "source": ["plot()"]}, {"id": "b", "source": "x"}, {"id": "new", "source": "y"}]}
    build_docs.describe_pictures(copy, source)
    assert [cell["source"] for cell in copy["cells"]] == ["#| fig-alt: Loss\nplot()", "x", "y"]


# A small site, rendered like the whole


def code(source: str, **data: str) -> dict:
    outputs = [{"output_type": "display_data", "metadata": {}, "data": data}] if data else []
    return {
        "cell_type": "code",
        "id": "c",
        "metadata": {},
        "execution_count": None,
        "source": source,
        "outputs": outputs,
    }


def notebook(title: str, *cells: dict) -> str:
    first = {"cell_type": "raw", "id": "a", "metadata": {}, "source": f"---\ntitle: {title}\n---"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [first, *cells]})


SIDEBAR = """website:
  sidebar:
    collapse-level: 1
    contents:
      - index.ipynb
      - section: Library
        contents:
          - section: Core
            contents: [library/core/lines.ipynb]
          - section: Model
            contents: [library/model/langsamp.ipynb]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "The site of three notebooks with this project's settings."
    proc = tmp_path_factory.mktemp("site") / "_proc"
    for folder in (proc / "library/core", proc / "library/model"):
        folder.mkdir(parents=True)
    for name in ("_quarto.yml", "nbdev.yml", "styles.css", "site.html", "favicon.svg"):
        shutil.copy(NBS / name, proc)
    (proc / "sidebar.yml").write_text(SIDEBAR)
    table = {
        "cell_type": "markdown",
        "id": "t",
        "metadata": {},
        "source": "## Words\n\nSee `x`.\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    }
    signature = "```python\ndef f(\n    x, # From [`g`](https://langsamp.github.io/langsamp/index.html#g)\n)\n```"
    picture = code('#| fig-alt: "Loss: falls"\nplot()', **{"image/png": "aGk="})
    long = code("x", **{"text/plain": "x" * 300})
    cells = [
        code("import os"),
        picture,
        table,
        long,
        code("#| echo: false\nshow_doc(f)", **{"text/markdown": signature}),
    ]
    (proc / "index.ipynb").write_text(notebook("langsamp", *cells))
    (proc / "library/core/00_lines.ipynb").write_text(notebook("Lines", code("1")))
    (proc / "library/model/05_langsamp.ipynb").write_text(notebook("The LangSAMP model", code("1")))
    assert build_docs.render(proc, {}) == []
    return proc / "_docs"


def test_sidebar_is_grouped_and_open_at_the_page(site):
    text = (site / "library/core/lines.html").read_text()
    sections = re.findall(r'class="collapse list-unstyled sidebar-section depth\d( show)?"', text)
    assert sections == [" show", " show", ""]  # Library, Core, and Model folded
    assert len(re.findall(r'sidebar-link active"[^>]*aria-current="page"', text)) == 1
    assert "sidebar.scrollTop" in text


def test_pages_lead_to_their_neighbours(site):
    text = (site / "library/core/lines.html").read_text()
    neighbours = re.findall(r'<a [^>]*class="pagination-link"[^>]*>', text)
    assert ["../../index.html", "../model/langsamp.html"] == [re.findall('href="(.*?)"', a)[0] for a in neighbours]


def test_pages_have_a_dark_mode_and_the_repository(site):
    text = (site / "index.html").read_text()
    assert 'data-mode="dark"' in text and "quarto-color-scheme-toggle" in text
    tool = re.findall(r'<a [^>]*aria-label="Repository"[^>]*>', text)
    assert len(tool) == 1 and f'href="{get_config().git_url}"' in tool[0]


def test_view_source_leads_to_the_notebook(site):
    text = (site / "library/model/langsamp.html").read_text()
    source = re.findall(r'href="([^"]*)"[^>]*>\s*<i class="bi bi-code"', text)
    assert source == [f"{get_config().git_url}/blob/main/nbs/library/model/05_langsamp.ipynb"]
    assert (NBS / "library/model/05_langsamp.ipynb").exists()


def test_page_list_of_phones_has_a_name(site):
    text = (site / "index.html").read_text()
    assert 'button.append(" Pages")' in text and text.count("quarto-btn-toggle") == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_script_runs_in_a_browser(site):
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={site.parent / 'profile'}"]
    command = [*browser, "--window-size=500,800", "--dump-dom", (site / "index.html").as_uri()]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert re.search(r'quarto-btn-toggle btn"[^>]*aria-expanded="false"[^>]*>.*? Pages</button>', text)
    assert len(re.findall(r'<pre tabindex="0">', text)) == 1  # The line that is too long for the window


def test_cells_are_readable(site):
    text = (site / "index.html").read_text()
    assert re.search(r"<details class=\"code-fold\">\s*<summary>Imports</summary>", text)
    assert 'alt="Loss: falls"' in text and "fig-alt" not in text
    assert '<div class="sd-table">' in text and ".sd-table" in (site / "styles.css").read_text()
    assert "](http" not in text


def test_search_has_no_markdown(site):
    entries = json.loads((site / "search.json").read_text())
    texts = " ".join(entry["text"] for entry in entries)
    assert "See x." in texts and "# From g" in texts and "](" not in texts and "`" not in texts


def test_unreadable_pages_are_listed(page, tmp_path):
    page.write_text('<title>Same</title><img src="a.png"><img src="b.png" alt="Loss">')
    (tmp_path / "other.html").write_text("<title>Same</title>")
    shared, picture, other = sorted(build_docs.unreadable_pages(tmp_path), key=lambda line: line.split(":")[0])
    assert shared.startswith("library/core.html: the title") and picture.startswith("library/core.html: a picture")
    assert other.startswith("other.html: the title `Same`")


# The notebooks


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_titles_are_distinct():
    titles = Counter("".join(cells_of(path)[0]["source"]).split("\n")[0] for path in NBS.rglob("*.ipynb"))
    assert [title for title, times in titles.items() if times > 1] == []


def test_every_picture_has_an_alt_text():
    missing = []
    for path in NBS.rglob("*.ipynb"):
        for cell in cells_of(path):
            source, outputs = "".join(cell["source"]), cell.get("outputs", [])
            drawn = any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))
            if (drawn and "#| fig-alt: " not in source) or "![](" in source:
                missing.append(f"{path.relative_to(NBS)} {cell['id']}")
    assert missing == []


def test_install_page_covers_the_ways_to_install():
    text = "".join("".join(cell["source"]) for cell in cells_of(NBS / "install.ipynb"))
    extras = [key.removesuffix("_requirements") for key in get_config().d if key.endswith("_requirements")]
    assert extras and all(f"langsamp[{extra}]" in text for extra in extras)
    tutorials = re.findall(r"colab\.research\.google\.com/github/langsamp/langsamp/blob/main/(\S+?)\)", text)
    assert len(tutorials) == 2 and all((NBS.parent / path).exists() for path in tutorials)
