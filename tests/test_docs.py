"How the docs builder changes pages; scripts/check.sh builds the whole site."

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import build_docs


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


def test_links_from_the_root_of_the_checkout_are_relative_on_the_site():
    "Those of notebooks that are run, whose copies may lie anywhere."
    text = (
        "[a](/nbs/library/data/00_shards.ipynb#x) [b](/nbs/03_pretrain.ipynb) [c](../01_corpus.ipynb) [d](/nbs/a.svg)"
    )
    assert build_docs.page_links(text, "../") == (
        "[a](../library/data/shards.ipynb#x) [b](../pretrain.ipynb) [c](../corpus.ipynb) [d](/nbs/a.svg)"
    )
