"Fine-tuned and frozen encoders learn what can be learnt and nothing else, with reproducible predictions."

import copy

import numpy as np
import pytest
import torch
from tiny import stock_checkpoint
from transformers import AutoModel, AutoTokenizer

from langsamp.core.errors import UserError
from langsamp.evaluation.datasets import LabelledTexts
from langsamp.evaluation.finetune import (
    IGNORE_INDEX,
    FineTuning,
    accumulate_gradients,
    epoch_order,
    fine_tune,
    task_model,
    training_batch,
)
from langsamp.evaluation.linear_probe import encode_words, pad_batch, train_probe, word_windows
from langsamp.evaluation.metrics import accuracy, token_accuracy
from langsamp.evaluation.tasks import TASKS, LabelledTask

QUICK = FineTuning(num_train_epochs=6, micro_batch_size=4, learning_rate=3e-3)
TAGGING = QUICK.replace(metric_for_best_model="token_accuracy", num_train_epochs=3)
LEXICON = {"article": "the right freedom".split(), "number": "dignity law nation".split()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    "A random 2x64 encoder, in memory, and its tokenizer."
    folder = stock_checkpoint(tmp_path_factory.mktemp("encoder"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, model_max_length=64)


def topics(count: int, seed: int) -> LabelledTexts:
    "Sentences of four words from one of two lexicons, which is the label."
    draw = np.random.default_rng(seed)
    labels = [str(label) for label in draw.choice(list(LEXICON), count)]
    return LabelledTexts([" ".join(draw.choice(LEXICON[label], 4)) for label in labels], labels)


def tagged(count: int, seed: int) -> LabelledTexts:
    "Sentences of one to six words from both lexicons; each word's tag is its lexicon."
    draw, kind = np.random.default_rng(seed), {word: name for name, words in LEXICON.items() for word in words}
    texts = [[str(word) for word in draw.choice(list(kind), draw.integers(1, 7))] for _ in range(count)]
    return LabelledTexts(texts, [[kind[word] for word in words] for words in texts])


def shuffled(examples: LabelledTexts, seed: int) -> LabelledTexts:
    "The same texts and labels, each at random."
    draw = np.random.default_rng(seed)
    if isinstance(examples.labels[0], str):
        return LabelledTexts(examples.texts, [str(label) for label in draw.permutation(examples.labels)])
    flat = iter(draw.permutation([tag for tags in examples.labels for tag in tags]).tolist())
    return LabelledTexts(examples.texts, [[next(flat) for _ in tags] for tags in examples.labels])


def trained(mode: str, encoder, train: LabelledTexts, dev: LabelledTexts, seed: int = 1):
    "A fine-tuned or a frozen encoder."
    if mode == "frozen":
        return train_probe(*encoder, train, dev, layer=2, seed=seed)
    return fine_tune(*encoder, train, dev, QUICK if isinstance(train.labels[0], str) else TAGGING, seed)


@pytest.mark.parametrize("make", [topics, tagged])
@pytest.mark.parametrize("mode", ["frozen", "fine-tuned"])
def test_true_labels_are_learnt_and_shuffled_ones_are_not(mode, make, encoder):
    "With random labels in all splits, test labels cannot be predicted (bound of 4.5 standard deviations)."
    train, dev, test = make(48, 0), make(24, 1), make(100, 2)
    score = accuracy if make is topics else token_accuracy
    true = score(test.labels, trained(mode, encoder, train, dev).predict(test.texts))
    assert true > 0.9, f"{mode}: learnt only {true}"
    train, dev, test = [shuffled(split, seed) for seed, split in enumerate((train, dev, test))]
    chance = score(test.labels, trained(mode, encoder, train, dev).predict(test.texts))
    count = sum(1 if make is topics else len(labels) for labels in test.labels)
    assert abs(chance - 0.5) < 4.5 * 0.5 / count**0.5, f"{mode}: {chance} on shuffled labels"


@pytest.mark.parametrize("make", [topics, tagged])
@pytest.mark.parametrize("mode", ["frozen", "fine-tuned"])
def test_rerunning_gives_the_same_predictions(mode, make, encoder):
    "The state of the global random generators has no effect and is not changed."
    train, dev, test = make(20, 0), make(10, 1), make(40, 2)
    first = trained(mode, encoder, shuffled(train, 0), dev)
    torch.rand(7)
    state = torch.get_rng_state()
    again = trained(mode, encoder, shuffled(train, 0), dev)
    assert torch.equal(torch.get_rng_state(), state), "the global generator moved"
    assert first.history == again.history and first.predict(test.texts) == again.predict(test.texts)


def test_another_seed_is_another_run(encoder):
    train, dev = topics(20, 0), topics(10, 1)
    first, other = [trained("fine-tuned", encoder, train, dev, seed) for seed in (1, 2)]
    assert first.history != other.history, "the seed does nothing in fine-tuning"
    coefficients = [trained("frozen", encoder, train, dev, seed).head[-1].coef_ for seed in (1, 2)]
    assert not np.array_equal(*coefficients), "the seed does nothing in frozen mode"


@pytest.mark.parametrize("mode", ["frozen", "fine-tuned"])
def test_the_encoder_is_left_unchanged(mode, encoder):
    before = copy.deepcopy(encoder[0].state_dict())
    trained(mode, encoder, topics(16, 0), topics(8, 1))
    assert all(torch.equal(weight, before[name]) for name, weight in encoder[0].state_dict().items())
    assert all(weight.grad is None for weight in encoder[0].parameters()), "gradients reached the encoder"


@pytest.mark.parametrize("make", [topics, tagged])
@pytest.mark.parametrize("mode", ["frozen", "fine-tuned"])
def test_other_texts_do_not_change_predictions(mode, make, encoder):
    "A text padded to sixty tokens has the same prediction as alone."
    model, texts = trained(mode, encoder, shuffled(make(20, 0), 0), make(10, 1)), make(30, 2).texts
    long = " ".join(["freedom"] * 50) if make is topics else ["freedom"] * 25
    assert model.predict([*texts, long])[:-1] == model.predict(texts) == [model.predict([text])[0] for text in texts]


def test_unused_weights_are_an_error(encoder, monkeypatch):
    "They are not replaced silently by a random layer."
    model, _ = encoder
    weights = {name: weight for name, weight in model.state_dict().items() if "layer.1.output" not in name}
    monkeypatch.setattr(model, "state_dict", lambda: weights)
    with pytest.raises(UserError, match="no place for encoder.layer.1.output"):
        task_model(model, 2, False, [0])


# Words


def test_the_label_is_on_the_first_token_of_a_word(encoder):
    "And nowhere else: the head gets as many labels as there are words."
    _, tokenizer = encoder
    window, *rest = word_windows([["unforeseeable", "the"]], tokenizer, 64)
    token_ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("unforeseeable", "the")]
    assert len(token_ids[0]) > 1 and not rest
    assert window.ids[1:-1] == token_ids[0] + token_ids[1] and window.firsts == [1, 1 + len(token_ids[0])]


@pytest.mark.parametrize("word", ["", "\u200b", "\u00ad", " ", "\u2581", "\U0001f600", "<s>"])
@pytest.mark.parametrize("mode", ["frozen", "fine-tuned"])
def test_unencodable_words_still_get_a_tag(mode, word, encoder):
    "And the words beside them keep theirs."
    model = trained(mode, encoder, tagged(48, 0), tagged(24, 1))
    tags = model.predict([["the", word, "dignity"], [word]])
    assert [len(sentence) for sentence in tags] == [3, 1]
    assert [tags[0][0], tags[0][2]] == ["article", "number"]


def test_long_sentences_are_split_between_words(encoder):
    "Every word is in just one window, in order, and no window is longer than allowed; a word that is too long is cut."
    _, tokenizer = encoder
    sentences = [["the", "nation"] * 40, [], ["law"], ["unforeseeable" * 20, "law"]]
    windows = list(word_windows(sentences, tokenizer, 20))
    assert max(len(window.ids) for window in windows) <= 20
    places = [(window.sentence, window.start + i) for window in windows for i in range(len(window.firsts))]
    assert places == [(number, i) for number, words in enumerate(sentences) for i in range(len(words))]
    for window in windows:
        first = tokenizer(sentences[window.sentence][window.start], add_special_tokens=False)["input_ids"][0]
        assert window.ids[window.firsts[0]] == first and window.ids[0] == tokenizer.cls_token_id


def test_word_vectors_are_those_of_the_layer(encoder):
    "For each layer, also in windows."
    model, tokenizer = encoder
    words = ["the", "unforeseeable", "law"] * 15
    for layer in (0, 1, 2):
        (vectors,) = encode_words([words], model, tokenizer, layer)
        windows = list(word_windows([words], tokenizer, 64))
        assert vectors.shape == (45, 64) and len(windows) > 1
        for window in windows:
            with torch.no_grad():
                states = model(**pad_batch([window.ids], model, tokenizer), output_hidden_states=True).hidden_states
            expected = states[layer][0, window.firsts].numpy()
            found = vectors[window.start : window.start + len(window.firsts)]
            assert np.allclose(found, expected, atol=1e-5), f"layer {layer}"


# Steps


def step_of(encoder, words: bool):
    "A task model without dropout, rows of different length with targets, and a function that makes a batch of some."
    model, tokenizer = encoder
    examples = tagged(7, 5)
    windows = list(word_windows(examples.texts, tokenizer, 64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = task_model(model, 2, words, list(range(len(tokenizer)))).eval()
    targets = [[number % 2] for number in range(7)]
    if words:
        targets = [[IGNORE_INDEX] * len(window.ids) for window in windows]
        for number, (target, window) in enumerate(zip(targets, windows)):
            for place in window.firsts:
                target[place] = number % 2
    return task, lambda rows: training_batch([windows[i] for i in rows], [targets[i] for i in rows], task, tokenizer)


def gradient(task, batches, reference_parts: int = 0) -> torch.Tensor:
    "All gradients as one vector."
    accumulate_gradients(task, batches, reference_parts)
    return torch.cat([weight.grad.flatten() for weight in task.parameters() if weight.grad is not None])


@pytest.mark.parametrize("words", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(words, encoder):
    "Seven rows as 7, as 4 + 3 and one by one; each has another number of targets when words are tagged."
    task, batch = step_of(encoder, words)
    whole = gradient(task, [batch(range(7))])
    for parts in ([range(4), range(4, 7)], [[i] for i in range(7)]):
        difference = (gradient(task, [batch(rows) for rows in parts]) - whole).abs().max()
        assert difference < 1e-6, f"{len(parts)} batches differ by {difference}"


@pytest.mark.parametrize("words", [False, True])
def test_the_reference_code_drops_gradients_of_all_but_the_last_batch(words, encoder):
    "Its gradient is half of the last batch's and does not depend on the first one."
    task, batch = step_of(encoder, words)
    parts = [batch(range(4)), batch(range(4, 7))]
    mistaken = gradient(task, parts, reference_parts=2)
    assert (mistaken - gradient(task, parts[1:]) / 2).abs().max() < 1e-6
    assert (mistaken - gradient(task, [batch(range(7))])).abs().max() > 1e-3
    assert torch.equal(mistaken, gradient(task, [batch([6, 5]), parts[1]], reference_parts=2))


def test_the_reference_learning_rate_ends_half_way(encoder):
    "Ours ends at 0, after as many steps."
    train, dev = topics(32, 0), topics(8, 1)
    rates = []
    for mistake in (False, True):
        options = QUICK.replace(num_train_epochs=2, reference_accumulation=mistake)
        history = fine_tune(*encoder, train, dev, options, 1).history
        assert history[-1]["step"] == 2 * 32 / 8
        rates.append(history[-1]["learning_rate"] / options.learning_rate)
    assert rates == pytest.approx([0.0, 0.5])


def test_training_only_used_embedding_rows_gives_the_same_result(encoder, monkeypatch):
    "Leaving out vocabulary that does not occur in training changes no loss and no prediction."
    train, dev, test = topics(24, 0), topics(12, 1), topics(30, 2)
    few = fine_tune(*encoder, train, dev, QUICK, 1)
    every = lambda model, classes, words, used_ids: task_model(model, classes, words, list(range(600)))  # noqa: E731
    monkeypatch.setattr("langsamp.evaluation.finetune.task_model", every)
    all_rows = fine_tune(*encoder, train, dev, QUICK, 1)
    sizes = [one.model.get_input_embeddings().rows.shape[0] for one in (few, all_rows)]
    assert sizes[0] < 60 and sizes[1] == 600
    assert [line["loss"] for line in few.history] == pytest.approx(
        [line["loss"] for line in all_rows.history], abs=1e-4
    )
    assert few.predict(test.texts) == all_rows.predict(test.texts)


def test_the_best_weights_are_kept(encoder):
    "Not the last: the labels of the development split are swapped, so training makes them worse."
    train, dev = topics(48, 0), topics(24, 1)
    other = {"article": "number", "number": "article"}
    dev = LabelledTexts(dev.texts, [other[label] for label in dev.labels])
    tuned = fine_tune(*encoder, train, dev, QUICK.replace(metric_for_best_model="accuracy"), 1)
    scores = [line["accuracy"] for line in tuned.history]
    assert len(scores) == QUICK.num_train_epochs and scores[-1] < max(scores)
    assert accuracy(dev.labels, tuned.predict(dev.texts)) == max(scores)


@pytest.mark.parametrize("every, looks", [(0, [3, 6]), (4, [4, 6]), (100, [6])])
def test_when_the_development_split_is_evaluated(every, looks, encoder):
    "Each epoch, every so many steps, and always at the end."
    options = QUICK.replace(num_train_epochs=2, eval_steps=every)
    seen = []
    fine_tune(*encoder, topics(20, 0), topics(4, 1), options, 1, lambda facts: seen.append(facts["step"]))
    assert seen == looks


def test_an_epoch_has_each_row_once():
    for count, size in [(1, 16), (16, 16), (701, 16), (2001, 32)]:
        lengths = np.random.default_rng(0).integers(3, 90, count).tolist()
        steps = epoch_order(lengths, size, torch.Generator().manual_seed(1))
        assert sorted(row for step in steps for row in step) == list(range(count))
        assert sorted(len(step) for step in steps)[1:] == [size] * (len(steps) - 1)


def test_a_nonfinite_loss_stops_fine_tuning(encoder):
    with pytest.raises(UserError, match="diverged.*lower learning_rate"):
        fine_tune(*encoder, topics(20, 0), topics(8, 1), QUICK.replace(learning_rate=1e30), 1)


def test_presets_are_the_paper_s():
    "Section 3.2: effective batches, epochs, rates and lengths."
    presets = {name: task.fine_tuning for name, task in TASKS.items() if isinstance(task, LabelledTask)}
    facts = {
        task: (
            options.learning_rate,
            options.micro_batch_size * options.gradient_accumulation_steps,
            options.num_train_epochs,
            options.max_seq_length,
            options.max_grad_norm,
        )
        for task, options in presets.items()
    }
    assert facts["sib200"] == (1e-5, 16, 40, 160, 0.0) and facts["taxi1500"] == (1e-5, 16, 40, 100, 0.0)
    assert facts["wikiann"] == facts["ner"] == facts["ud"] == (2e-5, 32, 10, 256, 1.0)
    assert not any(options.reference_accumulation or options.weight_decay for options in presets.values())
