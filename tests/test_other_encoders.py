"Encoder halves and decoder-only models as encoders, on tiny ones of each family, by the path that users take."

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub_server
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    NllbTokenizer,
    ViTConfig,
    ViTModel,
)

from langsamp.cli.main import main as command
from langsamp.core.errors import UserError
from langsamp.encoding.encoder import last_pooling, mean_pooling
from langsamp.encoding.open_encoder import Encoder, open_encoder
from langsamp.encoding.sentence_transformers import save_sentence_encoder
from langsamp.evaluation.evaluate import evaluate
from langsamp.evaluation.results import read_results
from langsamp.model.families import tiny_config
from langsamp.params.evaluate import EncodersParams, EvaluationParams
from langsamp.params.yaml_reader import read_yaml

TEXTS = [
    "All human beings are born free.",
    "and",
    "Все люди рождаются свободными",
    "Everyone has the right to life. " * 3,
]
HALVES, DECODERS = ["NLLB, encoder", "mT5, encoder"], ["BLOOM", "Llama", "Qwen3"]
ENCODERS = ["BERT", "XLM-R", "ModernBERT", "EuroBERT"]
FRAMES = {
    "NLLB, encoder": "eng_Latn $A </s>",
    "mT5, encoder": "$A </s>",
    "BLOOM": "$A",
    "Llama": "<s> $A",
    "Qwen3": "$A",
}


def framed(family: str, stock: Path) -> Any:
    "A tokenizer that puts the same special tokens around a text as those of the family, and pads on the same side."
    tokenizer = AutoTokenizer.from_pretrained(stock, padding_side="left" if family in DECODERS else "right")
    if family == "NLLB, encoder":
        tokenizer.add_special_tokens({"extra_special_tokens": ["eng_Latn"]})
    if frame := FRAMES.get(family):
        marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in frame.split() if mark != "$A"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=frame, special_tokens=marks)
    if family == "Llama":
        tokenizer.pad_token = None
    return tokenizer


def save(family: str, stock: Path, folder: Path, **options: Any) -> Path:
    "A checkpoint with its head, as on the Hub, and random weights that are not all alike."
    tokenizer = framed(family, stock)
    config = tiny_config(family, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, **options)
    seq2seq, kind = config.is_encoder_decoder, AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = (AutoModelForSeq2SeqLM if seq2seq else kind).from_config(config)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(stock, tmp_path_factory) -> dict[str, Path]:
    "A checkpoint of each family."
    home = tmp_path_factory.mktemp("checkpoints")
    return {family: save(family, stock, home / family.partition(",")[0]) for family in [*ENCODERS, *HALVES, *DECODERS]}


def by_hand(folder: Path) -> Any:
    "The stock encoder, without this library."
    model = AutoModel.from_pretrained(folder).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


@pytest.mark.parametrize("family", [*ENCODERS, *HALVES, *DECODERS])
@torch.no_grad()
def test_vectors_are_those_of_each_text_alone(family, folders, tmp_path):
    "Whatever else is in the batch, on whichever side the tokenizer pads; mean, first and last of the real tokens."
    encoder, model = open_encoder(str(folders[family]), tmp_path), by_hand(folders[family])
    alone = [model(torch.tensor([encoder.tokenizer(text)["input_ids"]])).last_hidden_state[0].numpy() for text in TEXTS]
    for pooling, pick in {
        "mean": lambda h_LH: h_LH.mean(0),
        "cls": lambda h_LH: h_LH[0],
        "last": lambda h_LH: h_LH[-1],
    }.items():
        expected = np.stack([pick(h_LH) for h_LH in alone])
        for batch_size in (64, 1):
            found = encoder.encode(TEXTS, pooling=pooling, batch_size=batch_size)
            assert np.abs(found - expected).max() < 2e-5, pooling


@pytest.mark.parametrize("family", [*ENCODERS, *HALVES, *DECODERS])
def test_every_layer_is_that_of_the_whole_model(family, folders, tmp_path):
    encoder, model = open_encoder(str(folders[family]), tmp_path), by_hand(folders[family])
    ids = torch.tensor([encoder.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        states = [state[0].mean(0).numpy() for state in model(ids, output_hidden_states=True).hidden_states]
    found = [encoder.encode(TEXTS, layer=layer)[0] for layer in range(len(states))]
    assert len(states) == 3 and np.abs(np.stack(found) - np.stack(states)).max() < 2e-5


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_batch_that_is_padded_on_the_left_gives_the_same_vectors(family, folders, tmp_path):
    encoder = open_encoder(str(folders[family]), tmp_path)
    rows = [encoder.tokenizer(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, rows))
    ids_BL = torch.tensor([[1] * (longest - len(row)) + row for row in rows])
    mask_BL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    places_BL = (mask_BL.cumsum(1) - 1).clip(0)
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL} | (
        {} if family == "BLOOM" else {"position_ids": places_BL}
    )
    h_BLH = encoder.model(**inputs).last_hidden_state
    for pooling, pool in {"mean": mean_pooling, "last": last_pooling}.items():
        assert np.abs(pool(h_BLH, mask_BL).numpy() - encoder.encode(TEXTS, pooling=pooling)).max() < 2e-5


@pytest.mark.parametrize("family", [*HALVES, *DECODERS, "EuroBERT"])
def test_decoder_only_models_read_from_left_to_right(family, folders, tmp_path):
    "A first token that later text does not change; encoders, and the encoder half of others, see the whole text."
    encoder = open_encoder(str(folders[family]), tmp_path)
    one, other = encoder.encode([TEXTS[0], TEXTS[0] + " And all are equal."], pooling="cls")
    assert np.allclose(one, other, atol=2e-5) == (family in DECODERS)


# The encoder half


@pytest.mark.parametrize("family", HALVES)
def test_only_the_encoder_is_loaded(family, folders, tmp_path):
    "The decoder's weights are not read: without them in the file, the encoder is the same."
    whole, half = open_encoder(str(folders[family]), tmp_path), tmp_path / "half"
    half.mkdir()
    for path in folders[family].iterdir():
        (half / path.name).write_bytes(path.read_bytes())
    weights = load_file(half / "model.safetensors")
    decoder = {name for name in weights if "decoder." in name}
    save_file({n: w for n, w in weights.items() if n not in decoder}, half / "model.safetensors", {"format": "pt"})
    assert decoder and not [name for name, _ in whole.model.named_parameters() if "decoder" in name]
    assert open_encoder(str(half), tmp_path).identity == whole.identity
    model = by_hand(folders[family])
    assert sum(w.numel() for w in whole.model.parameters()) == sum(w.numel() for w in model.parameters())
    model.save_pretrained(half)
    assert open_encoder(str(half), tmp_path).identity == whole.identity, "saved alone"


def test_the_decoder_may_be_deeper(stock, tmp_path):
    folder = save("NLLB, encoder", stock, tmp_path / "deep", decoder_layers=4)
    assert open_encoder(str(folder), tmp_path).encode(TEXTS).shape == (4, 32)


def test_a_half_that_lacks_weights_is_refused(folders, tmp_path):
    for path in folders["NLLB, encoder"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.encoder.layers.1.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of the encoder: layers.1.fc1.weight"):
        open_encoder(str(tmp_path), tmp_path)


def test_the_language_code_of_nllb_is_the_same_for_all_text(folders, tmp_path):
    "Its tokenizer puts eng_Latn in front, so no language id is given; another code is another encoder."
    letters = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnop"])}
    encoder = open_encoder(str(folders["NLLB, encoder"]), tmp_path)
    identities = set()
    for source in ("eng_Latn", "rus_Cyrl"):
        NllbTokenizer(vocab=letters, merges=[], src_lang=source).save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("a cab")["input_ids"])
        assert (tokens[0], tokens[-1]) == (source, "</s>")
        encoder.model.save_pretrained(tmp_path)
        identities.add(open_encoder(str(tmp_path), tmp_path).identity)
    assert len(identities) == 2


# Evaluated


@pytest.mark.parametrize("family", ["EuroBERT", "NLLB, encoder", "BLOOM"])
def test_evaluation_by_folder(family, folders, tmp_path):
    common = {"encoder": str(folders[family]), "tasks": ["udhr"], "languages": ["rus_Cyrl", "deu_Latn"], "layer": 1}
    rows, warnings = evaluate(EvaluationParams(**common), tmp_path)
    last, _ = evaluate(EvaluationParams(**common, pooling="last"), tmp_path)
    assert (
        warnings == [] and set(rows["mode"]) == {"raw", "centred"} and set(last["mode"]) == {"raw-last", "centred-last"}
    )
    assert set(rows.target) == {"rus_Cyrl", "deu_Latn"} and not rows.duplicated(["mode", "target", "metric"]).any()
    assert len(read_results([str(folders[family])], tmp_path)) == len(rows) + len(last)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    "A SIB-200 and a WikiANN of two languages."
    folder, words = tmp_path_factory.mktemp("sets"), [line.split() for line in tiny.sentences("eng_Latn", 40, seed=5)]
    for code, iso in {"eng_Latn": "en", "deu_Latn": "de"}.items():
        for split, count in {"train": 8, "dev": 6, "test": 12}.items():
            topics = [
                f"{i}\t{('health', 'sports', 'travel')[i % 3]}\t{' '.join(words[i % 3][: 2 + i % 4] + words[i + 3])}"
                for i in range(count)
            ]
            tiny.write(folder / f"sib200/{code}/{split}.tsv", "\n".join(["index_id\tcategory\ttext", *topics]) + "\n")
            tags = [[f"{iso}:{word}\t{'B-PER' if word[0] < 'f' else 'O'}" for word in words[i]] for i in range(count)]
            tiny.write(folder / f"wikiann/{iso}/{split}", "\n\n".join("\n".join(one) for one in tags) + "\n")
    return folder


@pytest.mark.parametrize("family", ["NLLB, encoder", "Llama"])
def test_pooling_reaches_topics_and_not_the_tags_of_words(family, folders, tmp_path, sets):
    "Topics have another score with the last token; tags have the same, and are not computed again."
    common = {"encoder": str(folders[family]), "data_dir": str(sets), "seeds": 1, "tasks": ["sib200", "wikiann"]}
    mean, _ = evaluate(EvaluationParams(**common), tmp_path)
    stored = list((tmp_path / "evaluations").glob("*/wikiann-*"))
    last, _ = evaluate(EvaluationParams(**common, pooling="last"), tmp_path)
    topics, tags = [[rows[rows.task == task] for rows in (mean, last)] for task in ("sib200", "wikiann")]
    assert [set(rows["mode"]) for rows in (*topics, *tags)] == [{"frozen"}, {"frozen-last"}, {"frozen"}, {"frozen"}]
    assert topics[0].value.tolist() != topics[1].value.tolist() and tags[0].value.tolist() == tags[1].value.tolist()
    assert list((tmp_path / "evaluations").glob("*/wikiann-*")) == stored


@pytest.mark.parametrize("family", [*HALVES, "BLOOM", "Llama"])
def test_fine_tuning_works_or_says_why_not(family, folders, tmp_path, sets):
    "Decoder-only models have a classifier in transformers; the encoder half of NLLB or T5 has none."
    tuned = {"tasks": ["sib200"], "mode": "fine-tuned", "seeds": 1, "overrides": {"num_train_epochs": 1}}
    p = EvaluationParams(**tuned, encoder=str(folders[family]), data_dir=str(sets))
    if family in HALVES:
        with pytest.raises(UserError, match="has no classifier"):
            evaluate(p, tmp_path)
    else:
        rows, _ = evaluate(p, tmp_path)
        assert set(rows["mode"]) == {"fine-tuned"}


def test_by_command(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(tmp_path))
    words = [f"encoder={folders['Qwen3']}", "tasks=[udhr]", "languages=[rus_Cyrl]", "layer=1", "pooling=last"]
    command(["evaluate", *words])
    assert "raw-last" in capsys.readouterr().out


# Wrong use


@pytest.mark.parametrize(("words", "message"), [
    ({"pooling": "lst"}, "did you mean `last`"),
    ({"pooling": "last", "tasks": ["ner"]}, "pooling is for retrieval and topics with mode frozen"),
    ({"pooling": "last", "tasks": ["sib200"], "mode": "fine-tuned"}, "pooling is for retrieval and topics"),
])  # fmt: skip
def test_a_wrong_pooling_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        EvaluationParams(**words)


def test_what_is_no_text_encoder_is_refused(stock, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(stock).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a ViTModel, which is not a text encoder"):
        open_encoder(str(tmp_path), tmp_path)


def test_a_half_cannot_be_exported_and_says_so(folders, tmp_path):
    encoder = open_encoder(str(folders["NLLB, encoder"]), tmp_path)
    with pytest.raises(UserError, match="M2M100Encoder cannot be exported"):
        save_sentence_encoder(encoder, tmp_path / "made")


@pytest.mark.parametrize("layer", [1, -1])
def test_a_decoder_is_exported_with_its_last_token(layer, folders, tmp_path):
    from sentence_transformers import SentenceTransformer

    encoder: Encoder = open_encoder(str(folders["Llama"]), tmp_path)
    made = save_sentence_encoder(encoder, tmp_path / "made", layer, "last")
    opened = SentenceTransformer(str(made), device="cpu", local_files_only=True)
    assert np.abs(opened.encode(TEXTS) - encoder.encode(TEXTS, layer, "last")).max() < 2e-5


# Compared


SMALL = {"languages": ["rus_Cyrl", "deu_Latn"], "scores": ["udhr:centred:acc1", "udhr:raw:acc10"], "n_resamples": 100}


def test_the_figure_shows_the_smoke_run(smoke, monkeypatch):
    "With its default encoders, in a few languages."
    monkeypatch.setenv("LANGSAMP_OUTPUTS", str(smoke))
    few = {"languages": SMALL["languages"], "n_resamples": 100}
    found = tiny.run_notebook("figures/encoders", few, smoke)
    assert set(found["table"].encoder) == {"LangSAMP", "untrained"} and (smoke / "figures/encoders.csv").exists()


SCRIPT = """
import sys, json
from langsamp.analysis.encoder_comparison import compare, evaluate_encoders
from langsamp.params.evaluate import EncodersParams
p = EncodersParams(**json.loads(sys.argv[1]))
print(compare(evaluate_encoders(p, sys.argv[2])[0], p.scores, p.n_resamples).to_json(orient="records"))
"""


def test_the_table_by_names_on_a_hub(folders, tmp_path):
    "The encoders of params/figures/encoders.yaml by their names, from a Hub that has tiny models of the same kinds."
    page = read_yaml(tiny.ROOT / "params/figures/encoders.yaml")
    kinds = {"mBERT": "BERT", "XLM-R": "XLM-R", "Glot500-m": "XLM-R", "mmBERT": "ModernBERT", "EuroBERT": "EuroBERT"}
    kinds |= {"NLLB, encoder": "NLLB, encoder", "BLOOMZ, mean": "BLOOM", "BLOOMZ, last token": "BLOOM"}
    encoders = {label: own | {"layer": 1} for label, own in page["encoders"].items()}
    assert EncodersParams(**page).evaluations()["BLOOMZ, last token"].pooling == "last"
    with hub_server.hub_server() as (url, store):
        for label, own in encoders.items():
            store.add(f"models/{own['encoder']}", folders[kinds[label]])
        values = json.dumps(SMALL | {"encoders": encoders})
        names = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, values, str(tmp_path / "outputs")],
            env=os.environ | names, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads(done.stdout.splitlines()[-1])
    assert {row["encoder"] for row in table} == page["encoders"].keys() and {row["languages"] for row in table} == {2}
    poolings = {row["encoder"]: row["pooling"] for row in table}
    assert poolings["BLOOMZ, last token"] == "last" and poolings["BLOOMZ, mean"] == "mean"
    score = {(row["encoder"], row["score"]): row["mean"] for row in table}
    assert all(score[label, "udhr:raw:acc10"] == score["XLM-R", "udhr:raw:acc10"] for label in ("XLM-R", "Glot500-m"))


def test_a_name_that_the_hub_does_not_have(tmp_path):
    with pytest.raises(UserError, match="no run `nobody/nothing` under"):
        evaluate(EvaluationParams(encoder="nobody/nothing"), tmp_path)
