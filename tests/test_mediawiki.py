"MediaWiki's messages: read without unpacking, cleaned to sentences, and held out by key in every language."

import gzip
import io
import json
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow
import pytest

from langsamp.core.errors import UserError
from langsamp.core.manifests import find_damage, read_manifest
from langsamp.corpora.mediawiki import (
    MEDIAWIKI_VERSION,
    clean_message,
    fetch_mediawiki,
    mark_held_out,
    mediawiki_corpus,
    message_language,
    package_files,
    parallel_messages,
    read_messages,
    tree_files,
)
from langsamp.corpora.text import FilterReport, clean_lines, find_sources

MESSAGES = {  # Key -> how it is written in every language of the fixture
    f"key-{i}": f"{{word}} number {i} is on [[Special:Pages|a page]] with ten '''words''' {i}" for i in range(200)
}
WORDS = {"en": "Page", "de": "Seite", "pt": "Página", "pt-br": "A página", "et": "Leht", "eo": "Paĝo", "qqq": "Note"}


def messages(word: str) -> dict:
    return {"@metadata": {"authors": ["A"]}, **{k: v.replace("{word}", word) for k, v in MESSAGES.items()}}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    "A MediaWiki tree: two folders of messages, a copy of another project's, and another file."
    russian = messages("Страница") | {
        k: v.replace("number", "номер") for k, v in messages("Страница").items() if k[0] != "@"
    }
    russian = {k: "Страница номер и десять слов " + k[4:] if k[0] != "@" else v for k, v in russian.items()}
    found = {f"languages/i18n/{code}.json": json.dumps(messages(word)).encode() for code, word in WORDS.items()}
    found["languages/i18n/ru.json"] = json.dumps(russian).encode()
    found["extensions/Cite/i18n/en.json"] = json.dumps({"cite": "Cite this page for ever, please"}).encode()
    found["extensions/Cite/i18n/de.json"] = json.dumps({"cite": "Cite this page for ever, please"}).encode()
    found["vendor/oojs/oojs-ui/i18n/de.json"] = json.dumps({"x": "Kopie"}).encode()
    return found | {"composer.json": b"{}"}


@pytest.fixture(scope="module")
def tree(files, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mediawiki")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def debian(path: Path, files: dict[str, bytes], ending: str = "xz", root: str = "./usr/share/mediawiki/") -> Path:
    "A Debian package: an `ar` archive of three members, the last of them a compressed tar."
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(root + name.replace("extensions/", "extensions-core/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packers = {"xz": lzma.compress, "gz": gzip.compress, "zst": lambda b: pyarrow.compress(b, "zstd", asbytes=True)}
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{ending}": packers[ending](body.getvalue()),
    }
    with open(path, "wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


@pytest.mark.parametrize("ending", ["xz", "gz", "zst"])
def test_package_and_tree_have_the_same_messages(files, tree, tmp_path, ending):
    "With any compression; `extensions-core` is Debian's name of `extensions`."
    package = debian(tmp_path / "mediawiki_1_all.deb", files, ending)
    assert sorted(package_files(package)) == sorted(tree_files(tree))
    assert len(dict(tree_files(tree))) == len(files) - 2


@pytest.mark.parametrize("root", ["./usr/share/mediawiki/../../../../", "/", "../"])
def test_path_outside_the_package_is_an_error(files, tmp_path, root):
    package = debian(tmp_path / "mediawiki_1_all.deb", files, root=root)
    with pytest.raises(UserError, match="is outside the package; delete it"):
        list(package_files(package))
    assert [path.name for path in tmp_path.iterdir()] == [package.name]


@pytest.mark.parametrize("length", [0, 7, 30, 68, 300, -200])
def test_broken_package(files, tmp_path, length):
    package = debian(tmp_path / "mediawiki_1_all.deb", files)
    package.write_bytes(package.read_bytes()[:length])
    with pytest.raises(UserError, match="delete it and run again"):
        list(package_files(package))


def test_checksum_of_the_known_version(files, tmp_path):
    "The tested version must have the known checksum; for others the manifest stores name and checksum."
    other = debian(tmp_path / "mediawiki_1%3a1.43.1_all.deb", files)
    assert fetch_mediawiki(tmp_path) == other
    facts = read_manifest(mediawiki_corpus(cache=tmp_path))
    assert facts["source"] == other.name and len(facts["sha256"]) == 64
    debian(tmp_path / f"mediawiki_1%3a{MEDIAWIKI_VERSION}_all.deb", files)
    with pytest.raises(UserError, match="sha256 .* delete it and run again"):
        fetch_mediawiki(tmp_path)


def test_missing_apt_suggests_a_source_tree(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"no apt-get .* use a source tree of MediaWiki, as in `mediawiki:"):
        fetch_mediawiki(tmp_path)


def test_failing_apt_suggests_an_update(tmp_path, monkeypatch):
    apt = tmp_path / "bin/apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=":")
    with pytest.raises(UserError, match="(?s)apt-get update.*Unable to locate package"):
        fetch_mediawiki(tmp_path / "cache")


def test_folder_that_is_not_mediawiki(tmp_path):
    with pytest.raises(UserError, match="give the folder with languages/i18n/en.json"):
        mediawiki_corpus(tmp_path, tmp_path / "cache")


RAW = {
    "plain": ("Save page", "Save page"),
    "plural": ("$1 {{PLURAL:$1|page|pages}}", "pages"),
    "plural with a number": ("{{PLURAL:$1|0=No page|One page|Some pages}}", "Some pages"),
    "gender": ("{{GENDER:$1|He|She|They}} left", "They left"),
    "nested": ("{{GRAMMAR:genitive|{{SITENAME}}}} is {{#if:{{ns:1}}|a}} up", "Wiki is up"),
    "template in a link": ("Go to [[{{ns:8}}:Help|the {{int:x}}help]]", "Go to the help"),
    "link in a template": ("{{PLURAL:$1|[[a|b]]|[[c|many d]]}}", "many d"),
    "link without a label": ("See [[Help]]", "See Help"),
    "outer link": ("See [https://example.org/a?b=$1 the page], or [$1 this]", "See the page, or this"),
    "bare address": ("See https://example.org/a?b for more", "See for more"),
    "brackets are kept": ("Text [optional]", "Text [optional]"),
    "code": ("Set <code>$wgA = 1;</code> now", "Set now"),
    "tags": ("<b>Bold</b>, <i>thin</ i><br />next", "Bold, thin next"),
    "entities": ("a&nbsp;b &#160; c", "a b c"),
    "lists and headings": ("== Head ==\n* one\n# two\n----\n: three", "Head one two three"),
    "table": ("{| class=x\n| cell\n|}", ""),
    "html table": ("<table><tr><td>a</td></tr></table>", ""),
    "script": ("<script>alert('x')</script>", ""),
    "left-over markup": ("An open {{PLURAL:$1", ""),
    "no letter": ("$1: 12 %", ""),
    "one character": ("a", ""),
}


@pytest.mark.parametrize("name", RAW)
def test_cleaning(name):
    raw, clean = RAW[name]
    assert clean_message(raw) == clean
    assert clean_message(clean) == clean, "what is clean stays as it is"


def test_languages():
    "Codes with another meaning in ISO 639-3 are mapped, and macrolanguages are handled as in other corpora."
    known = {
        "en": "eng",
        "als": "gsw",
        "nrm": "nrf",
        "no": "nob",
        "zh-hant": "cmn",
        "fa": "pes",
        "sh": "hbs",
        "sa": "san",
    }
    assert {variant: message_language(variant) for variant in known} == known


def test_messages(tree):
    "Constructed languages, documentation, copies of other projects and untranslated messages are left out."
    table = read_messages(tree_files(tree))
    assert set(table.code) == {"eng_Latn", "deu_Latn", "por_Latn", "ekk_Latn", "rus_Cyrl"}
    assert not table.text.str.contains(r"[\[\]{}]|'''|Kopie").any()
    assert table[table.key == "cite"].code.tolist() == ["eng_Latn"]
    assert table.equals(read_messages(reversed(list(tree_files(tree))))), "the order of files must not count"


def test_held_out_keys_are_the_same_in_every_language(tree, tmp_path):
    folder = mediawiki_corpus(tree, tmp_path)
    table = pd.read_parquet(folder / "messages.parquet")
    held_out = {code: set(rows.key[rows.held_out]) for code, rows in table.groupby("code")}
    assert 8 < len(held_out["eng_Latn"]) < 45 and all(keys == held_out["eng_Latn"] for keys in held_out.values())
    assert table[table.held_out & (table.variant == "en")].words.between(5, 15).all()
    parallel = parallel_messages(folder, min_keys=8)
    assert set(parallel) == set(held_out)
    assert {len(texts) for texts in parallel.values()} == {len(held_out["eng_Latn"])}
    assert all(text.startswith("Página") for text in parallel["por_Latn"].values()), "pt comes before pt-br"
    assert parallel_messages(folder, min_keys=100) == {}


def test_ambiguous_or_incomplete_english_is_not_held_out():
    english = [
        "the same five words here",
        "the same five words here",
        "one two three four five",
        "six words " * 3,
        "short",
    ]
    table = pd.DataFrame({"variant": "en", "folder": "f", "key": [*"abcde"], "text": english, "whole": True})
    table.loc[3, "whole"] = False
    assert mark_held_out(table, share=1.0).held_out.tolist() == [False, False, True, False, False]


def test_held_out_messages_are_not_in_train(tree, tmp_path):
    "Also if another key has the same text."
    sources, warnings = find_sources(mediawiki_corpus(tree, tmp_path) / "text")
    assert warnings == []
    for code, files in sources.items():
        filter_report = FilterReport(code)
        list(clean_lines(files, filter_report))
        assert filter_report.dropped == {} and min(filter_report.kept.values()) > 0, code


def test_two_builds_are_equal_byte_for_byte(files, tree, tmp_path):
    "From the same tree, and after damage."
    one, two = mediawiki_corpus(tree, tmp_path / "a"), mediawiki_corpus(tree, tmp_path / "b")
    whole = (one / "manifest.json").read_bytes()
    assert (two / "manifest.json").read_bytes() == whole and one.name == two.name
    (one / "text/train/eng_Latn.txt").unlink()
    assert find_damage(mediawiki_corpus(tree, tmp_path / "a")) == "" and (one / "manifest.json").read_bytes() == whole


def test_changed_tree_gives_another_corpus(tree, tmp_path):
    changed = shutil.copytree(tree, tmp_path / "changed")
    (changed / "languages/i18n/fr.json").write_text(json.dumps({"key-1": "Une page de plus"}))
    assert mediawiki_corpus(changed, tmp_path).name != mediawiki_corpus(tree, tmp_path).name


@pytest.mark.slow
def test_the_package():
    "The real one: at least 500 language-scripts in 45 scripts, under 3 % of the text held out."
    try:
        folder = mediawiki_corpus()
    except UserError as error:
        if "apt" not in str(error):
            raise
        pytest.skip(f"the package mediawiki cannot be fetched: {error}")
    sources, warnings = find_sources(folder / "text")
    assert warnings == [] and len(sources) >= 500 and len({code[-4:] for code in sources}) >= 45
    table = pd.read_parquet(folder / "messages.parquet").drop_duplicates(["code", "text"])
    characters = table.text.str.len().groupby(table.held_out).sum()
    assert 0.015 < characters[True] / characters.sum() < 0.03
    assert len(parallel_messages(folder, 50)) >= 140 and len(parallel_messages(folder, 100)) >= 60
    done = subprocess.run(
        ["grep", "-rlE", r"\{\{|\[\[|</ ?[a-z]+>", str(folder / "text")], capture_output=True, text=True
    )
    assert done.stdout == "", "wiki text or HTML is left"
