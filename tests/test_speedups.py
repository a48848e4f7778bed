"Fast paths change the time and nothing else: fused loss, last layer at masked positions, dropout, packed sequences."

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_encoders
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from langsamp.corpora.registry import find_corpus
from langsamp.data import packing
from langsamp.data.packing import PackedSequences, pack_shard
from langsamp.data.shards import TokenDataset, write_shards
from langsamp.model import linear_cross_entropy as fused
from langsamp.model.backbones import position_offset
from langsamp.model.cpu_kernels import FastDropout
from langsamp.model.families import tiny_config
from langsamp.model.langsamp import LangSAMPForMaskedLM, from_backbone
from langsamp.model.linear_cross_entropy import linear_cross_entropy
from langsamp.model.packed_attention import block_diagonal_mask
from langsamp.params.pretrain import TrainingParams
from langsamp.tokenization.train import trained_tokenizer
from langsamp.training import loop as training

TINY = tiny.config()
CPU: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1, is_fsdp2=False)  # An accelerator


def seen_layouts(found: set) -> Callable[[torch.Tensor], None]:
    "A hook that notes whether gradients are dense or sparse."
    return lambda gradient: found.add(gradient.layout)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    "The gradient of each weight."
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def furthest(ours: dict, theirs: dict) -> float:
    "The largest difference between gradients, in units of the largest gradient."
    assert ours.keys() == theirs.keys()
    size = max(grad.abs().max() for grad in theirs.values())
    return max(((ours[name] - theirs[name]).abs().max() / size).item() for name in theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["language+script", "input+output", "logits"])
def test_gradients_added_by_row_end_at_the_same_weights(monkeypatch, tmp_path, precision, variant):
    "Three steps of two micro-batches; with the tables' rows, no micro-batch makes a gradient as long as the table."
    p = TrainingParams(max_steps=3, global_batch_size=8, micro_batch_size=4, warmup_steps=1, precision=precision)
    weights, layouts, whole = [], [], training.row_tables
    for tables in (whole, lambda *_: []):
        monkeypatch.setattr(training, "row_tables", tables)
        model = from_backbone(TINY, ["eng", "rus"], ["Cyrl", "Latn"], variant, dropout=0.0)
        hook = seen_layouts(found := set())
        seen = [table.weight.register_hook(hook) for table, _ in whole(model, CPU)]
        t = training.Trainer(model.train(), tiny.synthetic_data(tmp_path), p)
        for step in range(3):
            t.train_step(step)
        assert len(seen) == (4 if variant == "input+output" else 2)
        assert not any(table.sparse for table, _ in whole(model, CPU))
        weights.append([weight.detach() for weight in model.parameters()])
        layouts.append(found)
    assert layouts == [{torch.sparse_coo}, {torch.strided}]
    assert max((a - b).abs().max().item() for a, b in zip(*weights)) < 1e-5


@test_encoders.every
def test_the_fused_loss_has_the_value_and_gradients_of_the_stock_model(family):
    "To 1e-5."
    torch.manual_seed(0)
    model = from_backbone(tiny_config(family), ["eng"], ["Latn"], "baseline", dropout=0.0)
    mlm, tokens, labels = model.mlm, torch.randint(5, 256, (3, 16)), torch.randint(5, 256, (3, 16))
    assert model.fused_loss, f"{family} should be fused"
    plain = F.cross_entropy(mlm(tokens).logits.flatten(0, 1), labels.flatten())
    loss = model(tokens, labels=labels).loss
    assert abs(loss.item() - plain.item()) < 1e-5
    assert furthest(gradients(mlm, loss), gradients(mlm, plain)) < 1e-5


BERT_LIKE = {"XLM-R", "BERT", "RoBERTa", "CamemBERT", "ELECTRA"}


def trained_model(family: str) -> LangSAMPForMaskedLM:
    "A tiny model of a family, without dropout."
    config = tiny_config(family)
    return from_backbone(config, ["eng", "rus"], ["Cyrl", "Latn"], dropout=0.0).train()


@test_encoders.every
def test_bert_like_encoders_compute_their_last_layer_at_masked_positions(family):
    "No others do."
    assert bool(trained_model(family).last_layer_path) == (family in BERT_LIKE)


@pytest.mark.parametrize("seen", ["all", "no padding", "own sentence"])
@pytest.mark.parametrize("family", sorted(BERT_LIKE))
def test_the_last_layer_at_masked_positions_has_the_loss_and_gradients_of_the_whole_layer(family, seen):
    "To 1e-5 in every weight."
    model = trained_model(family)
    path, tokens = model.last_layer_path, torch.randint(5, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(64).view(4, 16) % 7 == 3, tokens, -100)
    labels[1] = -100  # A sequence without a masked token
    inputs = {"attention_mask": torch.ones_like(tokens)}
    if seen == "no padding":
        inputs["attention_mask"][:2, 11:] = 0
    if seen == "own sentence":
        inputs = block_diagonal_mask(
            torch.tensor([[1] * 5 + [2] * 8 + [0] * 3]).expand(4, -1), position_offset(model.mlm)
        )
    ids = {"language_ids": torch.tensor([0, 1, 1, 0]), "script_ids": torch.tensor([1, 0, 0, 1])}
    found = {}
    for model.last_layer_path in ("", path):
        with FlopCounterMode(display=False) as counted:
            loss = model(tokens, labels=labels, **inputs, **ids).loss
        found[bool(model.last_layer_path)] = loss.item(), gradients(model, loss), counted.get_total_flops()
    assert found[True][2] < found[False][2]
    assert abs(found[True][0] - found[False][0]) < 1e-5
    assert furthest(found[True][1], found[False][1]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [16, 200])
def test_attention_without_dropout_is_pytorchs_own(dtype, length):
    "Whichever way is faster, outputs and gradients agree within the precision."
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = (torch.arange(length) // 9)[:, None] == torch.arange(length) // 9
    found = {}
    for name, mode in (("stock", nullcontext()), ("ours", FastDropout())):
        with mode:
            out = F.scaled_dot_product_attention(*inputs, mask[None, None])
        found[name] = [out, *torch.autograd.grad(out.float().pow(2).sum(), inputs)]
    near = 1e-5 if dtype == torch.float32 else 3e-2
    for ours, stock in zip(found["ours"], found["stock"]):
        assert ours.dtype == dtype and (ours - stock).abs().max() < near * stock.abs().max()


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_query_that_attends_to_nothing_returns_zeros(kind):
    "Like PyTorch's attention: zeros, and finite gradients for everything else."
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 8, 4, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, 1, 8, 8) < 0.5
    mask[:, :, 2:4] = False
    if kind == torch.float32:
        mask = torch.zeros_like(mask, dtype=kind).masked_fill_(~mask, float("-inf"))
    found = {}
    for name, mode in (("stock", nullcontext()), ("ours", FastDropout())):
        with mode:
            out = F.scaled_dot_product_attention(*inputs, mask)
        found[name] = [out, *torch.autograd.grad(out.pow(2).sum(), inputs)]
    for ours, stock in zip(found["ours"], found["stock"]):
        assert torch.allclose(ours, stock, atol=1e-6)
    assert not found["ours"][0][:, :, 2:4].any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_number_of_rows_at_a_time_changes_nothing(monkeypatch, bias):
    "One, a few, all: the loss to 1e-6, and gradients to 1e-5."
    torch.manual_seed(0)
    linear, labels_K = nn.Linear(16, 700, bias=bias), torch.randint(700, (50,))
    x_KH = torch.randn(50, 16)

    def found() -> tuple[float, dict]:
        loss = linear_cross_entropy(x_KH, linear, labels_K, items=33)
        return loss.item(), gradients(linear, loss)

    loss, grads = found()
    plain = F.cross_entropy(linear(x_KH), labels_K, reduction="sum") / 33
    assert abs(loss - plain.item()) < 1e-5 and furthest(grads, gradients(linear, plain)) < 1e-5
    for at_once in (1, 700 * 7):
        monkeypatch.setattr(fused, "LOGITS_AT_ONCE", at_once)
        other, others = found()
        assert abs(loss - other) < 1e-5 and furthest(others, grads) < 1e-5


def test_under_autocast_the_loss_is_as_near_to_the_exact_one_as_the_plain_head(monkeypatch):
    "bf16 products cost accuracy; the fused end must not cost more."
    torch.manual_seed(0)
    linear, labels_K, x_KH = nn.Linear(64, 3000), torch.randint(3000, (200,)), torch.randn(200, 64)
    exact = gradients(linear, F.cross_entropy(linear(x_KH), labels_K))
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(linear, F.cross_entropy(linear(x_KH).float(), labels_K))
        ours = gradients(linear, linear_cross_entropy(x_KH, linear, labels_K))
    assert 1e-4 < furthest(ours, exact) < 1.5 * furthest(plain, exact) + 1e-3, "in bf16, and no worse for it"


MEMORY = """
import re, sys, torch
from pathlib import Path
from torch import nn
from langsamp.model.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
linear, x, labels = nn.Linear(16, 250_002), torch.randn(1500, 16), torch.randint(250_002, (1500,))
def peak():  # Not ru_maxrss, which begins at what the process had that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


before = peak()
if sys.argv[1] == "fused":
    linear_cross_entropy(x, linear, labels).backward()
else:
    nn.functional.cross_entropy(linear(x), labels).backward()
print((peak() - before) / 1024)
"""


@pytest.mark.slow
def test_logits_of_all_masked_tokens_are_never_in_memory():
    "1,500 tokens x 250,002 tokens have 1,431 MB in float32; the plain head keeps two or more of it."
    grown = {}
    for way in ("fused", "plain"):
        done = subprocess.run([sys.executable, "-c", MEMORY, way], capture_output=True, text=True, check=True)
        grown[way] = float(done.stdout)
    assert grown["fused"] < 800 < 2500 < grown["plain"], grown


def test_a_packed_sequence_has_the_loss_of_its_sentences_alone():
    "Loss and gradients of a packed sequence, compared with each sentence alone."
    model = from_backbone(TINY, ["eng"], ["Latn"], seed=1, dropout=0.0)
    sentences = [torch.randint(5, 256, (size,)) for size in (7, 9, 12)]
    labels = [torch.where(torch.rand(len(s)) < 0.4, s, -100) for s in sentences]
    items = sum((part != -100).sum() for part in labels)
    ids = {"language_ids": torch.tensor([0]), "script_ids": torch.tensor([0]), "num_items_in_batch": items}
    alone = sum(model(s[None], labels=part[None], **ids).loss for s, part in zip(sentences, labels))
    pad = torch.full((4,), 1)
    row, row_labels = torch.cat([*sentences, pad])[None], torch.cat([*labels, pad * 0 - 100])[None]
    segments = torch.repeat_interleave(torch.tensor([1, 2, 3, 0]), torch.tensor([7, 9, 12, 4]))[None]
    together = model(row, labels=row_labels, **block_diagonal_mask(segments, position_offset(model.mlm)), **ids).loss
    assert together.item() == pytest.approx(alone.item(), abs=1e-5)
    assert furthest(gradients(model, together), gradients(model, alone)) < 1e-5


@pytest.mark.parametrize("size", [8, 33, 128])
@pytest.mark.parametrize("seed", range(3))
def test_packing_patterns_use_every_length_exactly_as_often_as_it_occurs(size, seed):
    "No sequence is too long, and first fit in random order needs at most 2 % fewer sequences."
    random = np.random.default_rng(seed)
    lengths_N = np.minimum(1 + random.geometric(3 / size, 500), size)
    found, used = packing.packing_patterns(np.bincount(lengths_N, minlength=size + 1)), np.zeros(size + 1, int)
    for count, lengths in found:
        assert count > 0 and sum(lengths) <= size
        np.add.at(used, list(lengths), count)
    assert (used == np.bincount(lengths_N, minlength=size + 1)).all()
    rows: list[int] = []
    for length in lengths_N:
        fits = next((i for i, full in enumerate(rows) if full + length <= size), None)
        rows.append(0) if fits is None else None
        rows[-1 if fits is None else fits] += length
    assert sum(count for count, _ in found) <= 1.02 * len(rows)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[TokenDataset, PackedSequences, Path]:
    "A corpus as a stream, and packed, a few sentences at a time."
    home = tmp_path_factory.mktemp("packed")
    sources, _ = find_corpus(str(tiny.write_corpus(home / "corpus")))
    tokenizer = trained_tokenizer(sources, "packed", home / "tokenizers", 300)
    shards = write_shards(sources, tokenizer, home / "shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SENTENCES_PER_CHUNK", 25)
        for shard in shards:
            pack_shard(shard, 32)
    return TokenDataset(shards, "train", 32, 1), PackedSequences(shards, "train", 32, 1), home


def test_packing_loses_no_token_and_cuts_no_sentence_that_fits(packed):
    "The tokens of both, language by language; sentences are those of the text."
    sequences, rows, _ = packed
    (streamed, codes), (laid, rows_codes) = (part[np.arange(len(part))] for part in (sequences, rows))
    segments = rows.segments(np.arange(len(rows)))
    for code in range(3):
        stream = streamed[codes == code].ravel()
        stream = stream[stream != 1]
        expected = np.split(stream, np.flatnonzero(stream == 0)[1:])
        whole = {tuple(s) for s in expected if len(s) <= 32}
        found = [
            tuple(row[marks == number])
            for row, marks in zip(laid[rows_codes == code], segments[rows_codes == code])
            for number in range(1, marks.max() + 1)
        ]
        assert sorted(np.concatenate(found)) == sorted(stream)
        assert whole <= set(found) and all(len(s) <= 32 for s in found)


def test_a_packing_is_the_same_bytes_when_made_again(packed, tmp_path):
    "And another one if the text was packed in other portions."
    _, rows, home = packed
    shard = next((home / "shards").glob("eng_Latn-*"))
    for name in ("a", "b"):
        shutil.copytree(shard, tmp_path / name / "shards" / shard.name)
    once, twice = (pack_shard(tmp_path / name / "shards" / shard.name, 32) for name in ("a", "b"))
    files = sorted(f.name for f in once.iterdir())
    assert [(once / name).read_bytes() for name in files] == [(twice / name).read_bytes() for name in files]
    assert (once / "train.starts").read_bytes() != (home / "packed" / once.name / "train.starts").read_bytes()


RUN_WITHOUT_CACHE = """
import json, sys
from functools import partial
from langsamp.params.pretrain import PretrainParams
from langsamp.training import pretrain

pretrain.limit_primitive_cache = partial(pretrain.limit_primitive_cache, 0)
pretrain.pretrain(PretrainParams(**json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.parametrize("variable", ["", "DNNL_PRIMITIVE_CACHE_CAPACITY"])
def test_onednn_keeps_as_many_kernels_as_a_run_says(variable, monkeypatch, tmp_path):
    "It is told before its first operation: with room for none, no kernel is used twice, unless the user chose."
    for name in ("DNNL_PRIMITIVE_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "1024")
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONEDNN_VERBOSE", "2")
    if variable:
        monkeypatch.setenv(variable, "1024")
    p = tiny.params_of(
        tiny.write_corpus(tmp_path / "text"), run_name="run", max_steps=2, warmup_steps=1, precision="bf16"
    )
    command = [sys.executable, "-c", RUN_WITHOUT_CACHE, p.model_dump_json(), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "create:cache_miss" in out and ("create:cache_hit" in out) == bool(variable)
