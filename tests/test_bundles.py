"Small language-scripts share folders: few files, the same sequences, and only what changed is written again."

import hashlib
import os
import runpy
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from langsamp.core.files import sha256
from langsamp.corpora.registry import find_corpus
from langsamp.data import bundles, shards
from langsamp.data.bundles import FEW, group_languages, read_array, shard_folder, shard_folders
from langsamp.data.packing import PackedSequences, pack_shards
from langsamp.data.shards import TokenDataset, read_filter_reports, shard_path, text_sizes, write_shard, write_shards
from langsamp.params.pretrain import PretrainParams
from langsamp.tokenization.train import CorpusTokenizer, pretrained_tokenizer, trained_tokenizer
from langsamp.training.prepare import Corpus, open_run, prepare, training_data
from langsamp.training.shard_tasks import assign_languages, run_shard_task

CODES = [f"q{a}{b}_Latn" for a in "abcdefgh" for b in "abcdefghijklmnopqrstuvwxyz"]  # For private use


def write_text(folder: Path, count: int, lines: int = 400) -> Path:
    "A made-up corpus of languages with about so many lines in all, two of them at least in each."
    (folder / "train").mkdir(parents=True)
    (folder / "validation").mkdir()
    for number, code in enumerate(CODES[:count]):
        words = [f"{'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10 % 10]}{letter}" for letter in "uvwxyz"]
        text = [" ".join(words[(n * k) % 6] for k in range(3 + n % 5)) for n in range(max(2, lines // count))]
        (folder / f"train/{code}.txt").write_text("\n".join(text) + "\n")
        (folder / f"validation/{code}.txt").write_text(" ".join(words[::-1]) + "\n")
    return folder


def files_in(outputs: Path) -> dict[str, str]:
    "The files of prepared text, hidden ones apart, and their sums."
    places = [*(outputs / "data/shards").rglob("*"), *(outputs / "data/packed").rglob("*")]
    return {str(f.relative_to(outputs)): sha256(f) for f in places if f.is_file() and ".locks" not in f.parts}


def in_small_bundles(patch: pytest.MonkeyPatch) -> None:
    "Let a few kilobytes fill a bundle, so that a corpus of a test has several."
    patch.setattr(bundles, "BUNDLE_BYTES", 2_000)


@pytest.fixture
def small_bundles(monkeypatch):
    in_small_bundles(monkeypatch)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text", 60)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> Path:
    "The outputs of an undisturbed pass, in several bundles."
    outputs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        in_small_bundles(patch)
        prepare(tiny.params_of(text), outputs)
    return outputs


# Files and mappings


def maps_of(outputs: Path) -> int:
    "Mappings of this process into prepared text."
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(outputs / "data"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed in Linux's /proc")
def test_files_and_mappings_do_not_grow_with_languages(tmp_path):
    "Equal text in 36 and in 144 languages: as many files, open files and mappings, in both ways of reading."
    counts = []
    for count in (36, 144):
        corpus, outputs = write_text(tmp_path / f"{count}", count, 600), tmp_path / f"outputs-{count}"
        p, before = tiny.params_of(corpus), len(os.listdir("/proc/self/fd"))
        prepared = prepare(p, outputs)
        read = [
            prepared.sequences(split, q) for split in ("train", "validation") for q in (p, p.replace(packing="stream"))
        ]
        assert [len(set(x[np.arange(len(x))][1])) for x in read] == [count] * 4
        files, handles = [f for f in (outputs / "data").rglob("*") if f.is_file()], len(os.listdir("/proc/self/fd"))
        counts.append((len(files), maps_of(outputs)))
        assert handles - before < 3
    assert counts[0] == counts[1] and max(counts[0]) < 25 and min(counts[0]) > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed in Linux's /proc")
def test_the_script_measures(tmp_path):
    "One row of its table, for 40 languages."
    script = runpy.run_path(str(tiny.ROOT / "scripts/many_languages.py"))
    row = script["measure"](40, tmp_path)
    assert 15 < row["files"] < 25 and 0 < row["mappings"] < 10 and row["CPU seconds"] > row["CPU seconds again"] > 0
    assert row["CPU seconds of a plan"] > 0 and (tmp_path / "outputs/many/result.json").exists()


@pytest.mark.parametrize("languages", [600, 7_000, 50_000])
def test_folders_are_bounded_by_the_size_of_the_corpus(languages):
    "Forty megabytes in any number of languages, evenly or by Zipf's law: a few folders for each megabyte."
    for shares in (np.ones(languages), 1 / np.arange(1, languages + 1)):
        sizes = {f"{n}_Latn": int(size) for n, size in enumerate(40e6 * shares / shares.sum())}
        groups = group_languages(sizes)
        assert sorted(sum(groups, [])) == sorted(sizes)
        assert len(groups) <= 4 * 40e6 / bundles.BUNDLE_BYTES
        assert all(sum(sizes[code] for code in group) <= bundles.BUNDLE_BYTES for group in groups if len(group) > 1)


def test_few_languages_have_a_folder_each(text, tmp_path):
    "So runs on other selections of languages share them."
    sources = dict(list(find_corpus(str(text))[0].items())[:FEW])
    tokenizer = trained_tokenizer(sources, "0", tmp_path / "tokenizers", 300)
    shards = write_shards(sources, tokenizer, tmp_path / "shards")
    assert shards == [shard_path(code, sources[code], tokenizer, tmp_path / "shards") for code in sources]
    assert shard_folders(shards) == shards


# The same sequences

BEFORE_BUNDLES = "e48717205f0fc98e 560adfef2fbca28b"  # Of the code that gave each language-script a folder


def digest(p: PretrainParams, corpus: Corpus) -> str:
    "A hash of all sequences, and of what an epoch draws from each language-script."
    found, data = hashlib.sha256(), training_data(p, corpus)
    for split in (data.train, data.validation):
        tokens_BL, shards_B = split[np.arange(len(split))]
        parts = [tokens_BL, shards_B, np.array(split.codes)]
        parts += [split.segments(np.arange(len(split)))] if isinstance(split, PackedSequences) else []
        for part in parts:
            found.update(part.tobytes())
    found.update(np.asarray(data.quotas).tobytes())
    return found.hexdigest()[:16]


def test_sequences_are_those_of_the_code_before_bundles(text, whole):
    "Recorded then: tokens, segments, order and quotas, packed and as a stream."
    p = tiny.params_of(text)
    with pytest.MonkeyPatch.context() as patch:
        in_small_bundles(patch)
        found = [digest(q, prepare(q, whole)) for q in (p, p.replace(packing="stream"))]
    assert " ".join(found) == BEFORE_BUNDLES


@pytest.mark.parametrize("kind", [TokenDataset, PackedSequences])
def test_sequences_are_those_of_separate_folders(text, whole, tmp_path, small_bundles, kind):
    "In the same order, with the same codes; so are the filter reports and the arrays."
    prepared, sources = prepare(tiny.params_of(text), whole), find_corpus(str(text))[0]
    alone = [write_shard(code, files, prepared.tokenizer, tmp_path / "shards") for code, files in sources.items()]
    pack_shards(alone, 32)
    assert len(shard_folders(prepared.shards)) > 3 and [s.name for s in alone] == [s.name for s in prepared.shards]
    assert read_filter_reports(alone) == read_filter_reports(prepared.shards)
    for split in ("train", "validation"):
        ours, theirs = (kind(shards, split, 32, 1) for shards in (prepared.shards, alone))
        rows = np.random.default_rng(0).permutation(len(ours))
        assert len(ours) == len(theirs) and ours.codes == theirs.codes and ours.context == theirs.context
        assert all((a == b).all() for a, b in zip(ours[rows], theirs[rows]))
        if kind is PackedSequences:
            assert (ours.segments(rows) == theirs.segments(rows)).all() and ours.facts == theirs.facts
    for a, b in zip(alone, prepared.shards):
        for file in ("train.tokens", "train.ends", "validation.tokens", "validation.ends"):
            assert (read_array(a, file) == read_array(b, file)).all()


def test_small_languages_are_tokenized_together(text, whole, tmp_path, monkeypatch):
    "A bundle with fewer lines than a batch needs one call of the tokenizer, not one for each language and split."
    calls, flat = [], CorpusTokenizer.flat
    monkeypatch.setattr(CorpusTokenizer, "flat", lambda self, texts: calls.append(len(texts)) or flat(self, texts))
    written = write_shards(find_corpus(str(text))[0], next((whole / "data/tokenizers").iterdir()), tmp_path)
    assert len(written) == 60 and len(shard_folders(written)) == 1
    assert calls == [sum(sum(report["kept"].values()) for report in read_filter_reports(written))]


def latin_tokenizer(folder: Path, unk: int | None) -> Path:
    "A tokenizer of Latin letters, with an unknown token or without."
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"} | ({} if unk is None else {"unk": "<unk>"})
    vocabulary = [
        (token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", *"▁<>/abcdefghijklmnopqrstuvwxyz")
    ]
    fast = Tokenizer(models.Unigram(vocabulary, unk_id=unk))
    fast.pre_tokenizer, frame = pre_tokenizers.Metaspace(), [("<s>", 0), ("</s>", 2)]
    fast.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=frame)
    given = PreTrainedTokenizerFast(tokenizer_object=fast, **{f"{k}_token": v for k, v in names.items()})
    given.save_pretrained(folder / "given")
    return pretrained_tokenizer(str(folder / "given"), folder / "kept")


@pytest.mark.parametrize("unk", [None, 3])
def test_files_do_not_depend_on_the_batches(tmp_path, monkeypatch, unk):
    "A line, seven lines of any languages, or all at a time; some languages have text without a token, or no lines."
    corpus = write_text(tmp_path / "text", 40)
    for code in CODES[:40:3]:
        for split in ("train", "validation"):
            tiny.write(corpus / f"{split}/{code}.txt", f"no Ж in {split}\n<s> is text\nno Ω Ж\n")
    for code in (CODES[0], CODES[20], CODES[39]):
        for split in ("train", "validation"):
            tiny.write(corpus / f"{split}/{code}.txt", "\n")
    sources, found, batches = find_corpus(str(corpus))[0], [], shards._batches
    for size in (1, 7, 1024):
        monkeypatch.setattr(shards, "_batches", partial(batches, size=size))
        written = write_shards(sources, latin_tokenizer(tmp_path, unk), tmp_path / f"{size}")
        found.append({f.name: f.read_bytes() for f in shard_folder(written[0]).iterdir()})
    facts = [report["splits"]["train"] for report in read_filter_reports(written)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 6 and len(written) == 40
    assert [facts[n]["lines"] for n in (0, 20, 39)] == [0, 0, 0] and facts[3]["unknown"] >= 3
    assert facts[3].get("lost") == ({"Ж": 2, "Ω": 1} if unk is None else None)


def killed_on_separate_folders(step: int) -> None:
    "For `tiny.fork`: each language-script has its own folder, and the run is killed at a step."
    vars(bundles)["FEW"] = 1000
    tiny.at_step(step)


def test_a_run_on_separate_folders_continues_on_bundles(text, tmp_path):
    "Killed with one layout, continued with the other: the files of an unbroken run, byte for byte."
    for name in ("unbroken", "broken"):
        options = {"max_steps": 12, "save_steps": 4, "run_name": name}
        tiny.write_params(tmp_path / f"{name}.yaml", tiny.params_of(text, **options))
    killed = tiny.fork(tmp_path / "broken.yaml", tmp_path, killed_on_separate_folders, 6)
    assert tiny.exit_code(killed) < 0 and shard_folders(shards := open_run(tmp_path / "broken")[1].shards) == shards
    for name in ("broken", "unbroken"):
        assert tiny.exit_code(tiny.fork(tmp_path / f"{name}.yaml", tmp_path)) == 0
        assert len(shard_folders(open_run(tmp_path / name)[1].shards)) == 1
    assert tiny.fingerprint(tmp_path / "broken") == tiny.fingerprint(tmp_path / "unbroken")


# What is written again


def test_a_changed_language_changes_one_bundle(text, whole, tmp_path, small_bundles):
    "And an added one: all other folders stay, byte for byte and unwritten."
    shutil.copytree(text, tmp_path / "text")
    shutil.copytree(whole, tmp_path / "outputs")
    p = tiny.params_of(tmp_path / "text", tokenizer=str(next((whole / "data/tokenizers").iterdir())))
    prepared = prepare(p, tmp_path / "outputs")
    before, folders = files_in(tmp_path / "outputs"), set(shard_folders(prepared.shards))
    with (tmp_path / f"text/train/{CODES[7]}.txt").open("a") as file:
        file.write("one more line\n")
    changed = prepare(p, tmp_path / "outputs")
    after = set(shard_folders(changed.shards))
    assert len(folders - after) == 1 and len(after - folders) <= 2
    assert [a == b for a, b in zip(changed.shards, prepared.shards)].count(False) < len(CODES) // 3
    assert before.items() <= files_in(tmp_path / "outputs").items()
    (tmp_path / f"text/train/{CODES[70]}.txt").write_text("a new language\nin two lines\n")
    added = set(shard_folders(prepare(p, tmp_path / "outputs").shards))
    assert len(after - added) <= 1 and len(added - after) <= 2 and len(added) > 3


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
@pytest.mark.parametrize("part", ["shards/train.tokens", "shards/filter_reports.json", "packed/train.starts"])
def test_a_damaged_bundle_is_found_and_written_again(text, whole, tmp_path, small_bundles, capsys, part, how):
    "With the same bytes; a flipped bit is reported with the file's name, and the other folders stay."
    shutil.copytree(whole, tmp_path / "outputs")
    p, (place, name) = tiny.params_of(text), part.split("/")
    before = files_in(tmp_path / "outputs")
    damaged = sorted((tmp_path / "outputs/data" / place).glob("bundle-*"))[1] / name
    others = {
        f: f.stat().st_mtime_ns
        for f in damaged.parents[1].rglob("*")
        if f.is_file() and damaged.parent not in f.parents
    }
    tiny.spoil(damaged, how)
    capsys.readouterr()
    prepare(p, tmp_path / "outputs")
    assert files_in(tmp_path / "outputs") == before
    assert how != "flipped" or f"made again, because {damaged} does not match its sha256" in capsys.readouterr().out
    assert all(f.stat().st_mtime_ns == time for f, time in others.items())


# Several processes


def test_tasks_write_the_bundles_of_one_pass(text, whole, tmp_path, small_bundles):
    "Each bundle is of one task; with the tasks in any order, and one of them repeated."
    p, sources = tiny.params_of(text), find_corpus(str(text))[0]
    shares = [set(share) for share in assign_languages(sources, 3)]
    assert all(any(set(group) <= share for share in shares) for group in group_languages(text_sizes(sources)))
    for task in (2, 0, 2, 1):
        run_shard_task(p, tmp_path, task, 3)
    assert files_in(tmp_path) == files_in(whole)


def test_two_runs_at_once_share_bundles(text, tmp_path):
    "Both end with the same weights, over one copy of the text."
    for name in ("one", "two"):
        tiny.write_params(tmp_path / f"{name}.yaml", tiny.params_of(text, run_name=name, max_steps=4))
    processes = [tiny.fork(tmp_path / f"{name}.yaml", tmp_path) for name in ("one", "two")]
    assert [tiny.exit_code(process) for process in processes] == [0, 0]
    assert len(list((tmp_path / "data/shards").glob("*-*"))) == 1
    assert tiny.fingerprint(tmp_path / "one") == tiny.fingerprint(tmp_path / "two")
    shards = open_run(tmp_path / "one")[1].shards
    assert len(shards) == 60 and all(shard_folder(s).is_dir() and not s.exists() for s in shards)
