"The parameter `packing`: whole sentences kept apart, or windows on a stream."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pycountry
import pytest
import tiny
import torch
from transformers import AutoModelForMaskedLM, ModernBertConfig, MPNetConfig

from langsamp.analysis.plots import unigram_table
from langsamp.core.errors import UserError
from langsamp.core.files import read_json, sha256
from langsamp.core.manifests import write_manifest
from langsamp.data.masking import make_batch
from langsamp.data.packing import PackedSequences, packing_path
from langsamp.languages.codes import parse_code
from langsamp.model.packed_attention import check_packed_attention
from langsamp.params.pretrain import PlanParams
from langsamp.training.loop import Trainer, attention_kwargs
from langsamp.training.plan import plan
from langsamp.training.prepare import open_run, prepare, repetition_table, training_data
from langsamp.training.pretrain import initial_model, pretrain
from langsamp.training.shard_tasks import run_shard_task

WAYS = ("sentences", "stream")
both = pytest.mark.parametrize("packing", WAYS)


@pytest.fixture(scope="module")
def runs(corpus, outputs) -> dict[str, Path]:
    "The same run with each packing."
    for packing in WAYS:
        pretrain(tiny.params_of(corpus, run_name=f"packed-{packing}", packing=packing, max_steps=6), outputs)
    return {packing: outputs / f"packed-{packing}" for packing in WAYS}


def test_the_two_packings_differ(runs):
    "Other first loss, other tokens, other weights, other validation."
    first = {packing: tiny.metrics_of(run) for packing, run in runs.items()}
    for name in ("validation_loss", "loss", "tokens"):
        values = {packing: [line[name] for line in lines if name in line] for packing, lines in first.items()}
        assert values["sentences"][0] != values["stream"][0], name
    sums = {sha256(run / "model/model.safetensors") for run in runs.values()}
    assert len(sums) == 2


def test_the_default_is_sentences(corpus, outputs, runs):
    "The default equals the explicit value exactly."
    pretrain(tiny.params_of(corpus, run_name="packed-default", max_steps=6), outputs)
    default = outputs / "packed-default/model/model.safetensors"
    assert sha256(default) == sha256(runs["sentences"] / "model/model.safetensors")


def test_papermill_and_the_command_line_read_it(corpus, outputs, tmp_path, runs):
    "The runner notebook shows the packing's sequences, and gives the weights of the command line."
    options = {"run_name": "packed-notebook", "packing": "stream", "max_steps": 6}
    params = tiny.write_params(tmp_path / "p.yaml", tiny.params_of(corpus, **options))
    tiny.papermill("nbs/03_pretrain.ipynb", tmp_path / "out.ipynb", outputs, "-f", str(params))
    text = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "'packing': 'stream'" in text
    weights = outputs / "packed-notebook/model/model.safetensors"
    assert sha256(weights) == sha256(runs["stream"] / "model/model.safetensors")


def test_a_run_cannot_change_its_packing(corpus, outputs, runs):
    "A run cannot resume with another packing."
    with pytest.raises(UserError, match="packing"):
        pretrain(tiny.params_of(corpus, run_name="packed-stream", packing="sentences", max_steps=6), outputs)


@both
def test_the_run_report_describes_its_packing(runs, packing):
    "Sequences, fill, context and cut sentences, as counted by hand."
    report = read_json(runs[packing] / "corpus.json")["sequences"]
    p, corpus = open_run(runs[packing])
    data = training_data(p, corpus)
    assert report["packing"] == packing and report["train"]["sequences"] == len(data.train)
    tokens_BL, _ = data.train[np.arange(len(data.train))]
    assert report["train"]["filled"] == pytest.approx((tokens_BL != corpus.facts["pad"]).mean(), abs=1e-4)
    if packing == "stream":
        return
    ends = [np.fromfile(shard / "train.ends", "<u8").astype(int) for shard in corpus.shards]
    lengths = np.concatenate([np.diff(part, prepend=0) for part in ends])
    assert report["train"]["cut"] == (lengths > p.max_seq_length).sum()
    parts = np.concatenate([np.minimum(p.max_seq_length, n - np.arange(0, n, p.max_seq_length)) for n in lengths])
    assert report["train"]["context"] == pytest.approx((parts**2).sum() / parts.sum(), abs=0.01)


@both
def test_every_reader_of_a_run_uses_its_packing(runs, packing):
    "The unigram baseline uses the masked tokens of the validation, and epochs count sequences."
    p, corpus = open_run(runs[packing])
    validated = tiny.metrics_of(runs[packing])[0]["by_language_script"]
    unigrams = unigram_table(runs[packing]).query("variant == 'own'").set_index("code")
    assert {code: masked for code, (_, masked) in validated.items()} == unigrams.masked.astype(int).to_dict()
    drawn = repetition_table(p, corpus)["trained tokens"].sum()
    spent = sum(line.get("tokens", 0) for line in tiny.metrics_of(runs[packing]))
    assert drawn == pytest.approx(spent, rel=0.1)


@both
def test_plan_predicts_the_tokens_of_the_run(runs, outputs, packing):
    "Within the variation from sequences of different fill."
    p, _ = open_run(runs[packing])
    file = tiny.write_params(outputs / f"plan-{packing}.yaml", p)
    spent = read_json(runs[packing] / "result.json")["tokens"]
    assert plan(PlanParams(params=str(file), measured_steps=2), outputs)["tokens trained on"] == pytest.approx(
        spent, rel=0.05
    )


# Who sees whom


def borders_hold(model, data, packing: str) -> float:
    "The difference between a batch's loss in the training loop and that of its sentences alone."
    p = tiny.params_of(Path("nowhere"), dropout=0.0)
    t = Trainer(model.eval(), data, p)
    numbers = np.arange(min(4, len(data.train)))
    batch = make_batch(data.train, numbers, numbers * 0, 1, data.token_ids)
    items = float((batch.labels_BL != -100).sum())
    together, alone = t.batch_loss(t.plain.eval(), batch, items).item(), 0.0
    begins = batch.inputs_BL == 0  # `<s>`, which is never hidden
    for row in range(len(numbers)):
        if packing == "sentences":
            marks = batch.segments_BL[row]
        else:
            marks = np.where(batch.segments_BL[row] > 0, 1 + np.cumsum(begins[row]), 0)
        for number in range(1, marks.max() + 1):
            here = marks == number
            ids = {name: table[torch.from_numpy(batch.shards_B[row : row + 1])] for name, table in t.ids.items()}
            inputs, labels = [torch.from_numpy(part[row][here])[None] for part in (batch.inputs_BL, batch.labels_BL)]
            if here.any() and (labels != -100).any():
                count = torch.tensor(items)
                alone += t.plain(input_ids=inputs, labels=labels, **ids, num_items_in_batch=count).loss.item()
    return abs(together - alone)


@torch.no_grad()
def test_no_token_attends_to_another_sentence(corpus, outputs):
    "In the training loop, the loss of a packed sequence is that of its sentences alone; for a stream it is not."
    found = {}
    for packing in WAYS:
        p = tiny.params_of(corpus, packing=packing, dropout=0.0)
        prepared = prepare(p, outputs)
        model = initial_model(p, prepared, outputs)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)  # So that attention and positions matter
        found[packing] = borders_hold(model, training_data(p, prepared), packing)
    assert found["sentences"] < 1e-4 < 1e-2 < found["stream"], found


SMALL = {"vocab_size": 99, **tiny.SHAPE}


def test_a_model_with_a_window_keeps_it():
    "A layer with a sliding window attends within its sentence and its window."
    options = {"local_attention": 8, "pad_token_id": 1, "max_position_embeddings": 128, "global_attn_every_n_layers": 2}
    torch.manual_seed(0)
    modernbert = AutoModelForMaskedLM.from_config(ModernBertConfig(**SMALL, **options))
    check_packed_attention(modernbert, 64)
    modernbert.config.layer_types = ["full_attention", "full_attention"]  # What a lost window would be
    with pytest.raises(UserError, match="set packing to stream"):
        check_packed_attention(modernbert, 64)


def test_unsupported_model_is_an_error_before_training(corpus, outputs, tmp_path):
    "With a hint that works."
    sizes = {**SMALL, "vocab_size": 300}
    AutoModelForMaskedLM.from_config(MPNetConfig(**sizes, max_position_embeddings=66)).save_pretrained(tmp_path / "m")
    tokenizer = prepare(tiny.params_of(corpus), outputs).tokenizer
    shared = {"backbone": str(tmp_path / "m"), "tokenizer": str(tokenizer), "max_steps": 2, "warmup_steps": 0}
    with pytest.raises(UserError, match="MPNetForMaskedLM .* set packing to stream"):
        pretrain(tiny.params_of(corpus, run_name="mpnet", **shared), outputs)
    p = tiny.params_of(corpus, run_name="mpnet-stream", packing="stream", **shared)
    assert pretrain(p, outputs)["step"] == 2


def test_attention_follows_the_kind_of_sequences(corpus, outputs):
    "The mask is pairwise for packed sentences, and only for padding for a stream."
    for packing, dimensions in (("sentences", 4), ("stream", 2)):
        p = tiny.params_of(corpus, packing=packing)
        prepared = prepare(p, outputs)
        model, data = initial_model(p, prepared, outputs), training_data(p, prepared)
        assert (
            isinstance(data.train, PackedSequences)
            == isinstance(data.validation, PackedSequences)
            == (packing == "sentences")
        )
        t = Trainer(model, data, p)
        message = attention_kwargs(model, data.train, t.accelerator)(torch.tensor([[1, 1, 2, 2]]))
        assert message["attention_mask"].dim() == dimensions


# Kept beside the shards


def test_changed_text_is_packed_again(corpus, tmp_path):
    "A packing records the version of its text, because positions in another version would be wrong."
    p = tiny.params_of(corpus)
    prepared = prepare(p, tmp_path)
    shard, size = prepared.shards[0], p.max_seq_length
    before = (packing_path(shard, size) / "train.starts").read_bytes()
    ends = np.fromfile(shard / "train.ends", "<u8")
    np.delete(ends, len(ends) // 2).tofile(shard / "train.ends")  # As if two lines were one
    write_manifest(shard)
    training_data(p, prepared)
    assert (packing_path(shard, size) / "train.starts").read_bytes() != before


def test_array_tasks_pack_their_shards(corpus, tmp_path):
    "The run uses the packings that the array tasks wrote."
    p = tiny.params_of(corpus)
    for task in range(2):
        run_shard_task(p, tmp_path, task, of=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data/packed").rglob("*")}
    prepare(p, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data/packed").rglob("*")} and before


def test_packing_does_not_depend_on_the_number_of_processes(corpus, tmp_path, monkeypatch):
    "Byte for byte."
    p, found = tiny.params_of(corpus), []
    for processes in (1, 2):
        monkeypatch.setattr("langsamp.training.prepare._num_processes", lambda *_, n=processes: n)
        prepare(p, home := tmp_path / str(processes))
        files = sorted((home / "data/packed").rglob("*"))
        found.append({str(f.relative_to(home)): sha256(f) for f in files if f.is_file()})
    assert found[0] == found[1] and found[0]


# Handles

READER = """
import json, sys
from pathlib import Path
import numpy as np
from langsamp.data.shards import TokenDataset
from langsamp.data.packing import PackedSequences
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
shards = sorted(Path(sys.argv[1]).iterdir())
for kind in (TokenDataset, PackedSequences):
    for split in ("train", "validation"):
        sequences = kind(shards, split, 16, 1)
        assert len(set(sequences[np.arange(len(sequences))][1])) == len(shards)
print("read")
"""


def test_open_files_do_not_grow_with_languages(tmp_path):
    "300 languages are read with 128 handles, in both ways and both splits."
    codes = [f"{a}{b}{c}_Latn" for a in "abcdef" for b in "abcdefg" for c in "abcdefgh"][:300]
    tiny.synthetic_data(tmp_path, {code: 100 for code in codes})
    command = [sys.executable, "-c", READER, str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "read", done.stderr


MANY = """
import os, resource, sys
from langsamp.training.pretrain import main
os.fsync = lambda handle: None  # Fourteen thousand folders would wait for the disk most of the time
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_seven_thousand_languages_train_with_256_handles(tmp_path):
    "The command, from text to backbone, in a process that may open 256 files; most languages have no held-out text."
    special = {"mis", "mul", "und", "zxx"}  # ISO 639-3's codes for no language in particular
    every = {language.alpha_3 for language in pycountry.languages} - special
    known = sorted({str(parse_code(f"{code}_Latn")) for code in every})[:7000]
    for number, code in enumerate(known):
        words = [f"{'abcdefghij'[number % 10]}{number // 10 % 100}{n}" for n in range(9)]
        tiny.write(tmp_path / f"text/train/{code}.txt", f"{' '.join(words)}\n{' '.join(words[::-1])}\n")
    tiny.write(tmp_path / f"text/validation/{known[0]}.txt", "one sentence more " * 20 + "\n")
    p = tiny.params_of(tmp_path / "text", max_steps=40, save_steps=40, vocab_size=300, run_name="many")
    params = tiny.write_params(tmp_path / "p.yaml", p)
    command = [sys.executable, "-c", MANY, str(params), str(tmp_path / "outputs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6,999 of 7,000 language-scripts have no held-out text" in done.stdout
    assert read_json(tmp_path / "outputs/many/result.json")["step"] == 40


@both
def test_a_window_beside_padding_is_trained(corpus, outputs, packing):
    "Positions far from any token attend to nothing in a sliding window, and do not affect gradients."
    model = {"architecture": "modernbert", "num_layers": 4, "hidden_size": 32, "dropout": 0.0, "max_seq_length": 128}
    options = model | {"max_steps": 4, "global_batch_size": 12, "warmup_steps": 1}
    p = tiny.params_of(corpus, run_name=f"window-{packing}", packing=packing, **options)
    prepared = prepare(p, outputs)
    tokens_BL, _ = (train := prepared.sequences("train", p))[np.arange(len(train))]
    assert ((tokens_BL == prepared.facts["pad"]).sum(1) > 64).any(), "a sequence with more padding than the window"
    assert pretrain(p, outputs)["step"] == 4


def test_lack_of_memory_is_not_taken_for_lack_of_support(monkeypatch):
    def probe(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000000000000 bytes")

    monkeypatch.setattr("langsamp.model.packed_attention._keeps_apart", probe)
    mlm = AutoModelForMaskedLM.from_config(tiny.config())
    with pytest.raises(
        UserError, match="100 tokens in a sequence need more memory than there is; lower max_seq_length"
    ):
        check_packed_attention(mlm, 100)
