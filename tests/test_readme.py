"The commands and code blocks of README.md work."

import re

import pytest
import tiny

README = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_there_are_two_python_blocks():
    assert len(BLOCKS) == 2 and "encode(" in BLOCKS[0] and "pretrain(" in BLOCKS[1]


def test_the_encoder_block_gives_vectors(smoke):
    names: dict = {}
    exec(BLOCKS[0].replace('"udhr", "outputs"', f'"smoke", "{smoke}"'), names)
    assert names["vectors"].shape == (2, names["encoder"].model.config.hidden_size)


def test_the_own_text_block_pretrains(corpus, tmp_path, monkeypatch):
    tiny.write_corpus(tmp_path / "my-corpus")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[1].replace("max_steps=1000", "max_steps=2, warmup_steps=1, vocab_size=300"), {})
    assert (tmp_path / "outputs/mine/backbone/model.safetensors").exists()


@pytest.mark.parametrize("line", re.findall(r"^papermill .* -f .*", README, flags=re.M))
def test_the_papermill_command_fits_a_params_file(line, corpus, tmp_path):
    "With a params file made as described: a copy of one in params/, with a folder as corpus."
    own = (tiny.ROOT / "params/smoke.yaml").read_text()
    own = re.sub(r"languages: .*", f"languages: []\ncorpus: {corpus}", own).replace("smoke", "mine")
    own = own.replace("max_steps: 60", "max_steps: 2\nwarmup_steps: 1").replace("vocab_size: 1000", "vocab_size: 300")
    (tmp_path / "mine.yaml").write_text(own)
    _, notebook, output, flag, params = line.split()
    assert (output, flag, params) == ("outputs/mine.ipynb", "-f", "params/mine.yaml")
    tiny.papermill(notebook, tmp_path / "mine.ipynb", tmp_path, flag, str(tmp_path / "mine.yaml"))
    assert (tmp_path / "mine/result.json").exists()


def test_the_evaluation_command_fits_the_runner(smoke, tmp_path):
    (line,) = re.findall(r"^papermill .*04_evaluate.*?(?=  |$)", README, flags=re.M)
    _, notebook, _, *options = line.split()
    assert options == ["-p", "encoder", "udhr"]
    tiny.papermill(notebook, tmp_path / "evaluated.ipynb", smoke, "-p", "encoder", "smoke")
    assert list(smoke.glob("evaluations/*/udhr-*/rows.jsonl"))
