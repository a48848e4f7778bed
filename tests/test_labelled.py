"Labelled sets are read completely and as their authors intend; repaired, missing or unreadable parts are reported."

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from langsamp.core.errors import UserError
from langsamp.corpora.sources import hub_configs, hub_splits
from langsamp.evaluation import datasets as labelled
from langsamp.evaluation.datasets import (
    DATASETS,
    LABELS,
    LAYOUTS,
    NER_TAGS,
    LabelledTexts,
    load_labelled,
    repair_ner_tags,
    validate_labels,
)
from langsamp.languages.paper_lists import paper_entry, paper_groups

CONLLU = """# sent_id = 1
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tir\tir\tVERB\t_\t_\t_\t_\t_\t_

1\tNew York\tNew York\tPROPN\t_\t_\t0\troot\t_\t_
"""
WORD = "1\t{0}\t{0}\tNOUN\t_\t_\t0\troot\t_\t_\n"
NAME = "1\t{}\t{}\t-\t-\n"


def write(path: Path, text: str | bytes) -> Path:
    "A file, and the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture()
def data(tmp_path) -> Path:
    "A small folder in the layout of each set."
    for name in ("fra_Latn", "zho_Hans", "zho_Hant"):
        for split in ("train", "dev", "test"):
            rows = f'index_id\tcategory\ttext\n1\tsports\t"On dit ""{split}""."\n2\thealth\t  {name} \n'
            write(tmp_path / "sib200" / name / f"{split}.tsv", rows)
    write(tmp_path / "ud/UD_Spanish-X/es_x-ud-test.conllu", CONLLU)
    write(tmp_path / "ud/UD_Spanish-X/es_x-ud-test.txt", "Vámonos New York\n")
    write(tmp_path / "ud/UD_Spanish-X/README.md", "# Summary\n")
    for split in ("dev", "test"):
        write(tmp_path / f"ud/UD_English-EWT/en_ewt-ud-{split}.conllu", WORD.format(split))
        write(tmp_path / f"ud/UD_Xibe-XDT/sjo_xdt-ud-{split}.conllu", WORD.format("ᠰᡳᠪᡝ"))
    write(tmp_path / "ud/UD_English-PUD/en_pud-ud-test.conllu", WORD.format("pud"))
    for split in ("train", "dev", "test"):
        write(tmp_path / f"ner/UNER_Serbian-SET/sr_set-ud-{split}.iob2", NAME.format(split, "B-OTH"))
        write(tmp_path / f"wikiann/sl/{split}", "sl:Ana\tB-PER\nsl:spi\tO\n\nsl:10:30\tO\n")
    write(tmp_path / "taxi1500/eng_data/eng_train.tsv", "40001001\tFaith\tThe book\n43013001\tGrace\tBefore\n")
    write(tmp_path / "taxi1500/eng_data/eng_dev.tsv", "45011032\tSin\tFor God\n")
    write(tmp_path / "taxi1500/eng_data/eng_test.tsv", "66006006\tViolence\tI heard\n")
    write(tmp_path / "bible/deu-x-bible.txt", "# Comment\n40001001\tDas Buch\n66006006\tIch hörte\n41001001\tAnfang\n")
    return tmp_path


# From files


def test_topics(data):
    "Doubled quotes become single, values are stripped, and two folders with one code stay separate."
    sets, warnings = load_labelled("sib200", data)
    assert warnings == []
    assert [(one.name, one.code) for one in sets] == [
        ("fra_Latn", "fra_Latn"),
        ("zho_Hans", "zho_Hani"),
        ("zho_Hant", "zho_Hani"),
    ]
    assert list(sets[0].splits) == ["train", "dev", "test"]
    assert sets[0].splits["dev"] == LabelledTexts(['On dit "dev".', "fra_Latn"], ["sports", "health"])


def test_words_of_a_treebank(data):
    "Ranges and empty nodes are not words, a word may contain a space, and files beside the treebank are not read."
    sets, _ = load_labelled("ud", data)
    (spanish,) = [one for one in sets if one.name == "UD_Spanish-X"]
    assert spanish.code == "spa_Latn"
    assert spanish.splits == {"test": LabelledTexts([["Vamos", "nos"], ["New York"]], [["VERB", "PRON"], ["PROPN"]])}


def test_treebanks_of_one_language_and_of_several_files(data):
    "Each keeps its name; a training text in parts is one."
    for part in "ab":
        write(data / f"ud/UD_Czech-PDT/cs_pdt-ud-train-{part}.conllu", WORD.format(part))
    sets, _ = load_labelled("ud", data)
    assert [one.name for one in sets if one.code == "eng_Latn"] == ["UD_English-EWT", "UD_English-PUD"]
    (czech,) = [one for one in sets if one.name == "UD_Czech-PDT"]
    assert czech.splits["train"].texts == [["a"], ["b"]]


def test_only_english_without_train_is_trained_on_dev(data):
    sets, warnings = load_labelled("ud", data)
    splits = {one.name: one.splits for one in sets}
    assert {split: part.texts for split, part in splits["UD_English-EWT"].items()} == {
        "train": [["dev"]],
        "dev": [["test"]],
    }
    assert list(splits["UD_Xibe-XDT"]) == ["dev", "test"] and list(splits["UD_English-PUD"]) == ["test"]
    assert warnings == ["UD_English-EWT: no train; dev is used as train and test as dev, so it has no test"]
    write(data / "ud/UD_English-EWT/en_ewt-ud-train.conllu", WORD.format("train"))
    sets, warnings = load_labelled("ud", data)
    (whole,) = [one for one in sets if one.name == "UD_English-EWT"]
    assert [part.texts for part in whole.splits.values()] == [
        [["train"]],
        [["dev"]],
        [["test"]],
    ] and warnings == []


def test_unknown_entity_classes_are_reported(data):
    (serbian,), warnings = load_labelled("ner", data)
    assert serbian.code == "srp_Latn" and all(part.labels == [["O"]] for part in serbian.splits.values())
    assert warnings == [f"UNER_Serbian-SET {s}: names of class `OTH` read as `O`: 1" for s in ("train", "dev", "test")]


@pytest.mark.parametrize("ending", ["", ".txt", ".tsv"])
def test_wikiann(data, ending):
    "With any ending; a word may contain a colon, and blank lines at the end are not a sentence."
    for split in ("train", "dev", "test"):
        (data / f"wikiann/sl/{split}").rename(data / f"wikiann/sl/{split}{ending}")
    (slovene,), warnings = load_labelled("wikiann", data)
    assert warnings == [] and (slovene.name, slovene.code) == ("sl", "slv_Latn")
    assert slovene.splits["test"] == LabelledTexts([["Ana", "spi"], ["10:30"]], [["B-PER", "O"], ["O"]])


@pytest.mark.parametrize(
    ("name", "code"), [("bat-smg", "sgs_Latn"), ("als", "gsw_Latn"), ("sh", "hbs_Latn"), ("simple", "eng_Latn")]
)
def test_names_of_wikipedia(data, name, code):
    (data / "wikiann/sl").rename(data / "wikiann" / name)
    assert [one.code for one in load_labelled("wikiann", data)[0]] == [code]


def test_verses_with_a_topic(data):
    "English is the data set's own text; a Bible has the labels of its labelled verses."
    (english, german), warnings = load_labelled("taxi1500", data)
    assert (english.name, english.code, german.name, german.code) == ("eng", "eng_Latn", "deu-x-bible", "deu_Latn")
    assert english.splits["train"] == LabelledTexts(["The book", "Before"], ["Faith", "Grace"])
    assert german.splits == {
        "train": LabelledTexts(["Das Buch"], ["Faith"]),
        "test": LabelledTexts(["Ich hörte"], ["Violence"]),
    }
    assert warnings == [
        "deu-x-bible train: 1 of 2 labelled verses are missing",
        "deu-x-bible dev: 1 of 1 labelled verses are missing",
    ]


def test_taxi1500_has_its_own_english_and_needs_bibles(data):
    write(data / "bible/eng_Latn.txt", "40001001\tAnother wording\n")
    sets, warnings = load_labelled("taxi1500", data)
    assert [one.name for one in sets] == ["eng", "deu-x-bible"]
    assert any("eng_Latn.txt is not read" in warning for warning in warnings)
    for path in (data / "bible").iterdir():
        path.unlink()
    (english,), warnings = load_labelled("taxi1500", data)
    assert english.name == "eng" and any("no Bible in" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("sib200/fra_Latn/dev.tsv", None, "fra_Latn has no dev"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\ttext\n1\tHa\n", "dev.tsv:1: no column `category`"),
        ("sib200/fra_Latn/dev.tsv", b'index_id\tcategory\ttext\n1\tsports\t"open\n', "dev.tsv"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsports\t\xff\n", "dev.tsv"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsport\tHa\n", "`sport` is not a label of sib200: 1"),
        ("sib200/fra_Latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsports\t \n", "fra_Latn dev: left out, no text: 1"),
        ("sib200/eng_latn/dev.tsv", b"index_id\tcategory\ttext\n1\tsports\tHa\n", "did you mean `eng_Latn`"),
        ("ud/UD_French-Q/xyq_q-ud-test.conllu", WORD.format("mot").encode(), "`xyq` is not a language"),
        ("ud/UD_Spanish-X/es_x-ud-test.conllu", b"1\tsolo\n", "es_x-ud-test.conllu:1: fewer than 4 columns"),
        ("ud/UD_French-Q/notes.txt", b"", "UD_French-Q: no data found"),
        ("ud/UD_Spanish-X/es_x-ud-dev.conllu", b"1\tsolo\tsolo\t_\n", "`_` is not a label of ud: 1"),
        ("ner/UNER_Serbian-SET/sr_set-ud-dev.iob2", b"1\tAna\tPER\t-\t-\n", "`PER` is not a label of ner: 1"),
        ("wikiann/sl/dev", b"sl:Ana\n", "dev:1: not a word and its tag, as in `en:Paris<TAB>B-LOC`"),
        ("wikiann/xq/dev", b"xq:Ana\tO\n", "`xq` is not a language"),
        ("taxi1500/eng_data/eng_dev.tsv", None, "eng_dev.tsv is missing"),
        ("taxi1500/eng_data/eng_dev.tsv", b"45011032\tSin\n", "eng_dev.tsv:1: not verse, label and text"),
        ("taxi1500/eng_data/eng_dev.tsv", b"Gen 1\tSin\tText\n", "eng_dev.tsv:1: `Gen 1` is not a verse number"),
        ("taxi1500/eng_data/eng_dev.tsv", b"45011032\tSins\tText\n", "`Sins` is not a label of taxi1500"),
        ("taxi1500/eng_data/eng_dev.tsv", b"45011032\tSin\t\xff\n", "eng_dev.tsv"),
        ("bible/xqx-bible.txt", b"40001001\tText\n", "`xqx` is not a language"),
    ],
)
def test_errors_are_reported_and_the_rest_is_read(data, path, content, words):
    task = path.partition("/")[0].replace("bible", "taxi1500")
    before = load_labelled(task, data)
    (data / path).unlink() if content is None else write(data / path, content)
    sets, warnings = load_labelled(task, data)
    new = [warning for warning in warnings if warning not in before[1]]
    assert any(words in warning for warning in new), warnings
    assert len(sets) >= len(before[0]) - 1 > -1, "one file costs one language at most"


@pytest.mark.parametrize("task", LABELS)
def test_an_absent_dataset_is_reported(tmp_path, task):
    sets, warnings = load_labelled(task, tmp_path)
    home = DATASETS[task].url
    assert sets == [] and home in warnings[-1] and f"{task}/" in warnings[-1]


def test_names_and_folders(data, monkeypatch):
    with pytest.raises(UserError, match="did you mean `wikiann`"):
        load_labelled("wikian", data)
    with pytest.raises(UserError, match="set LANGSAMP_DATA"):
        load_labelled("ud", data / "absent")
    monkeypatch.setenv("LANGSAMP_DATA", str(data))
    assert len(load_labelled("ud")[0]) == 4


# Tags of names


def test_any_tags_come_out_well_formed_and_stay_so():
    "For any tags: each `I-` continues a name of its class, repairing again changes nothing, and valid tags stay."
    choices = [*NER_TAGS, "B-OTH", "I-OTH"]
    numbers = random.Random(7)
    for _ in range(300):
        tags = numbers.choices(choices, k=numbers.randint(1, 8))
        notes = Counter()
        repaired = repair_ner_tags(tags, notes)
        assert all(tag[0] != "I" or before[2:] == tag[2:] for before, tag in zip(["O", *repaired], repaired)), tags
        assert repair_ner_tags(repaired, again := Counter()) == repaired and not again.total()
        assert set(repaired) <= set(NER_TAGS) and (repaired == tags) == (not notes.total()), (tags, notes)
        assert [t[2:] for t in repaired if t != "O"] == [t[2:] for t in tags if t != "O" and "OTH" not in t]


def test_texts_and_labels_must_have_equal_length():
    with pytest.raises(ValueError, match="shorter"):
        validate_labels("sib200", "here", ["One", "Two"], ["sports"])


@pytest.mark.parametrize(("text", "label"), [(["Ana", "spi"], ["B-PER"]), ([], []), (["Ana"], ["B-PER", "O"])])
def test_examples_without_a_label_a_word_are_left_out(text, label):
    found, warnings = validate_labels("ner", "here", [text, ["Bo"]], [label, ["O"]])
    assert found == LabelledTexts([["Bo"]], [["O"]]) and len(warnings) == 1 and warnings[0].startswith("here: left out")


# From the hub


def publish(folder: Path, card: str, features: datasets.Features, **files: dict[str, list]) -> str:
    "A dataset with a card, as on the hub."
    for name, columns in files.items():
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{name}.parquet")
    write(folder / "README.md", f"---\nconfigs:\n{card}---\n")
    return str(folder)


def config(name: str, **splits: str) -> str:
    "An entry of a card."
    paths = "".join(f"  - {{split: {split}, path: {path}.parquet}}\n" for split, path in splits.items())
    return f"- config_name: {name}\n  data_files:\n{paths}"


@pytest.fixture()
def hub(tmp_path, monkeypatch) -> Path:
    "Datasets in folders where labelled_sets looks for them on the hub."
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    text = datasets.Value("string")
    backwards = datasets.ClassLabel(names=NER_TAGS[::-1])
    tags = datasets.Features(tokens=datasets.List(text), ner_tags=datasets.List(backwards))
    classes = datasets.Features(tokens=datasets.List(text), upos=datasets.List(datasets.ClassLabel(names=["_", "X"])))
    ana, bo = ({"tokens": [[name]], "ner_tags": [[tag]]} for name, tag in (("Ana", "B-PER"), ("Bo", "I-LOC")))
    topics = datasets.Features(index_id=datasets.Value("int64"), category=text, text=text)
    news = {"index_id": [1], "category": ["sports"], "text": ["On dit."]}
    words = {"tokens": [["del", "de", "el"]], "upos": [["_", "X", "X"]]}
    folders = {
        "wikiann": publish(
            tmp_path / "wikiann",
            config("sl", train="a", validation="b", test="b")
            + config("other-simple", test="a")
            + config("xq", test="a"),
            tags,
            a=ana,
            b=bo,
        ),
        "ner": publish(tmp_path / "ner", config("da_ddt", train="a", test="b"), tags, a=ana, b=bo),
        "sib200": publish(tmp_path / "sib", config("fra_Latn", train="a", validation="a", test="a"), topics, a=news),
        "ud": publish(tmp_path / "ud", config("es_x", test="a"), classes, a=words),
    }
    for task, home in folders.items():
        monkeypatch.setitem(DATASETS, task, replace(DATASETS[task], hub=home))
    return tmp_path


def test_wikiann_from_the_hub(hub):
    "Tags are read by name, `validation` is dev, and prefixes that are not standard are removed."
    (simple, slovene), warnings = load_labelled("wikiann")
    assert (slovene.name, slovene.code, simple.name, simple.code) == ("sl", "slv_Latn", "simple", "eng_Latn")
    assert [(split, part.labels) for split, part in slovene.splits.items()] == [
        ("train", [["B-PER"]]),
        ("dev", [["B-LOC"]]),
        ("test", [["B-LOC"]]),
    ]
    assert "simple has no train" in warnings and any("`xq` is not a language" in c for c in warnings)
    assert "sl test: `I-` where a name begins read as `B-`: 1" in warnings


def test_other_labelled_sets_from_the_hub(hub):
    (danish,), warnings = load_labelled("ner")
    assert (danish.name, danish.code, list(danish.splits)) == ("da_ddt", "dan_Latn", ["train", "test"])
    (french,), warnings = load_labelled("sib200")
    assert french.code == "fra_Latn" and french.splits["dev"] == LabelledTexts(["On dit."], ["sports"]) and not warnings
    (spanish,), _ = load_labelled("ud")
    assert spanish.splits == {"test": LabelledTexts([["de", "el"]], [["X", "X"]])}


def test_sets_with_a_program_of_their_own_are_read_from_the_plain_copy(hub, monkeypatch):
    "`datasets` refuses them; the hub keeps a copy with a folder for each configuration."
    (hub / "plain/da_ddt/validation").mkdir(parents=True)
    (hub / "ner/a.parquet").rename(hub / "plain/da_ddt/validation/0000.parquet")
    refused = "Dataset scripts are no longer supported, but found plain.py"

    def names(dataset: str) -> list[str]:
        raise RuntimeError(refused)

    files = ["README.md", "da_ddt/validation/0000.parquet"]
    monkeypatch.setattr("langsamp.corpora.sources.config_names", names)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *args, **options: files)
    plain = str(hub / "plain")
    assert hub_configs(plain) == ["da_ddt"]
    assert hub_splits(plain, "da_ddt") == {"validation": [{"tokens": ["Ana"], "ner_tags": ["B-PER"]}]}


@pytest.mark.parametrize("task", LAYOUTS)
def test_without_a_hub_the_error_names_a_fix(monkeypatch, task):
    "Without a network the error names the dataset and the way out."
    monkeypatch.delenv("LANGSAMP_DATA", raising=False)
    with pytest.raises(UserError, match=f"{DATASETS[task].hub}.*set LANGSAMP_DATA"):
        load_labelled(task)


def test_a_failing_configuration_does_not_stop_the_others(hub, monkeypatch):
    "The others are read, and it is reported; if all fail it is an error."
    read = labelled.hub_splits
    fail = {"sl"}

    def splits(dataset: str, config: str) -> dict:
        if config in fail:
            raise UserError(f"{dataset}, {config}: connection lost; set LANGSAMP_DATA")
        return read(dataset, config)

    monkeypatch.setattr(labelled, "hub_splits", splits)
    (simple,), warnings = load_labelled("wikiann")
    assert simple.name == "simple" and any(c.startswith("sl: ") and "connection lost" in c for c in warnings)
    fail |= {"other-simple", "xq"}
    with pytest.raises(UserError, match="connection lost; set LANGSAMP_DATA"):
        load_labelled("wikiann")


# The real sets, where they are at hand


def test_real_sib200(real):
    "205 folders of one shape, of which 172 are the paper's, each once; topics are parallel."
    sets, warnings = load_labelled("sib200", real)
    assert warnings == [] and len(sets) == 205
    assert {tuple((split, len(part.texts)) for split, part in one.splits.items()) for one in sets} == {
        (("train", 701), ("dev", 99), ("test", 204))
    }
    assert all(one.splits[split].labels == part.labels for one in sets for split, part in sets[0].splits.items())
    assert max(Counter(sets[0].splits["test"].labels).values()) == 51
    entries = Counter(entry for one in sets if (entry := paper_entry("sib200", one.name, one.code)))
    assert set(entries.values()) == {1}
    assert Counter(paper_groups("sib200")[entry] for entry in entries) == {"head": 78, "tail": 94}


def test_real_treebanks(real):
    sets, warnings = load_labelled("ud", real)
    assert len(sets) == 15 and len({one.code for one in sets}) == 14 and len(warnings) == 1
    sizes = {
        (one.name[3:], split): (len(part.texts), sum(map(len, part.texts)))
        for one in sets
        for split, part in one.splits.items()
    }
    pud = {name[: -len("-PUD")]: words for (name, split), (_, words) in sizes.items() if name.endswith("-PUD")}
    words = "20747 21180 15813 21332 23829 19446 16584 19355 23283 19076 22330 16881".split()
    assert list(pud.values()) == list(map(int, words))
    assert {key: size for key, size in sizes.items() if not key[0].endswith("-PUD")} == {
        ("English-EWT", "train"): (2001, 25147),
        ("English-EWT", "dev"): (2077, 25094),
        ("Wolof-WTB", "train"): (1188, 23561),
        ("Wolof-WTB", "dev"): (449, 10294),
        ("Wolof-WTB", "test"): (470, 10403),
        ("Yoruba-YTB", "test"): (317, 8243),
    }


def test_real_names(real):
    "As many names as begin with `B-` upstream, and the eleven that should have."
    sets, warnings = load_labelled("ner", real)
    begun = Counter()
    for one in sets:
        for split, part in one.splits.items():
            begun[one.name[5:], split] = sum(tag[0] == "B" for tags in part.labels for tag in tags)
    assert begun == {
        **{("Cebuano-GJA", "test"): 49, ("Tagalog-TRG", "test"): 23, ("Chinese-PUD", "test"): 1139},
        **{("English-EWT", "train"): 966, ("English-EWT", "dev"): 1088, ("English-PUD", "test"): 1075},
        **{("German-PUD", "test"): 1039, ("Portuguese-PUD", "test"): 1099, ("Russian-PUD", "test"): 1036},
        **{("Slovak-SNK", "train"): 2707, ("Slovak-SNK", "dev"): 636, ("Slovak-SNK", "test"): 915},
        **{("Danish-DDT", "train"): 3022 + 6, ("Danish-DDT", "dev"): 379, ("Danish-DDT", "test"): 446 + 1},
        **{("Serbian-SET", "train"): 5020 + 2, ("Serbian-SET", "dev"): 742 + 2, ("Serbian-SET", "test"): 847},
        ("Swedish-PUD", "test"): 1029,
    }
    assert [c for c in warnings if "OTH" in c] == [
        f"UNER_Serbian-SET {split}: names of class `OTH` read as `O`: {count}"
        for split, count in (("train", 355), ("dev", 100), ("test", 54))
    ]
