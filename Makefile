# On a new computer, `make run` or `make test` is enough: both set up .venv first.
SHELL  := bash
PYTHON ?= python3
ENV    := source .venv/bin/activate &&
PRESET ?= udhr
MAIN   := udhr udhr-baseline
SMALL  := small small-baseline
PM     := papermill --no-progress-bar --log-level WARNING --stdout-file - --stderr-file -
.PHONY: run small reproduce test test-slow export docs lab clean help

run: .venv/ok  ## pretrain LangSAMP and its baseline side by side, compare them (about 15 minutes on 2 cores)
	mkdir -p $(addprefix outputs/,$(MAIN) figures)
	$(ENV) export OMP_NUM_THREADS=1; printf '%s\n' $(MAIN) | xargs -P 2 -I{} bash -o pipefail -c \
	    '$(PM) nbs/03_pretrain.ipynb outputs/{}/pretrain.ipynb -f params/{}.yaml 2>&1 | sed -u "s/^/{}: /"'
	$(ENV) $(PM) nbs/figures/pretraining.ipynb outputs/figures/pretraining.ipynb -f params/figures/pretraining.yaml

small: .venv/ok  ## the small preset: corpus, adapted checkpoint, LangSAMP, and its baseline (hours on 2 cores)
	mkdir -p outputs/corpora outputs/adapted outputs/figures $(addprefix outputs/,$(SMALL))
	$(ENV) $(PM) nbs/01_corpus.ipynb outputs/corpora/small.ipynb -f params/corpora/small.yaml
	$(ENV) $(PM) nbs/02_start.ipynb outputs/adapted/small.ipynb -f params/adapted/small.yaml
	$(ENV) for run in $(SMALL); do $(PM) nbs/03_pretrain.ipynb outputs/$$run/pretrain.ipynb -f params/$$run.yaml || exit; done
	$(ENV) $(PM) nbs/figures/pretraining.ipynb outputs/figures/small.ipynb -f params/figures/pretraining-small.yaml

reproduce: .venv/ok  ## four variants with three seeds: pretrained, evaluated, every table and figure (PRESET=small on a GPU)
	mkdir -p outputs/reproductions
	$(ENV) $(PM) nbs/05_reproduce.ipynb outputs/reproductions/$(PRESET).ipynb -f params/reproductions/$(PRESET).yaml

test: .venv/ok  ## every check but the slow tests: export, clean notebooks, lint, types, docs, tests
	@$(ENV) bash scripts/check.sh

test-slow: .venv/ok  ## the tests that take minutes
	$(ENV) HF_HUB_OFFLINE=1 python -m pytest -q -m slow -n 2 --dist loadfile

export: .venv/ok  ## after an edit: export notebooks to the library, clean and format them
	$(ENV) ruff format nbs tests scripts setup.py && nbdev_export && nbdev_clean

docs: .venv/ok  ## the docs site, in _docs/
	$(ENV) python scripts/build_docs.py

lab: .venv/ok  ## open JupyterLab, with options of its own in ARGS: make lab ARGS="--no-browser --port 8889"
	$(ENV) jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

clean:  ## delete build products, except outputs/ and .venv
	rm -rf _docs _proc build *.egg-info .pytest_cache .ruff_cache
	find nbs langsamp tests scripts -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

.venv/ok: settings.ini setup.py constraints.txt scripts/setup.sh scripts/jupyter_server_config.py scripts/configure_git.sh
	PYTHON=$(PYTHON) bash scripts/setup.sh && touch $@
