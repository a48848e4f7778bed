#!/usr/bin/env bash
# Make .venv with the tested versions: PYTHON=python3.12 bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
need=$(sed -n 's/^min_python = //p' settings.ini)

stop() { echo "setup: $*" >&2; exit 1; }

command -v "$PYTHON" > /dev/null || stop "no $PYTHON found; install Python $need or newer, or name one: make run PYTHON=/path/to/python"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$PYTHON" -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$need'.split('.'))))" \
    || stop "$PYTHON is Python $version, and $need or newer is needed; name another: make run PYTHON=python3.12"
"$PYTHON" -c 'import venv, ensurepip' 2> /dev/null \
    || stop "$PYTHON cannot make a virtual environment; on Debian or Ubuntu: sudo apt-get install python3-venv"

echo "setup: installing into .venv, Python $version, some minutes; 2.4 GB with a CPU build of torch, more with CUDA"
"$PYTHON" -m venv .venv
source .venv/bin/activate
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USE_PEP517=1  # seqeval has no wheel, and an old pip builds it the old way
python -m pip install --quiet -c constraints.txt -e '.[dev]'
python -m pip check
python -m ipykernel install --sys-prefix --name python3 > /dev/null
# Kernels use the loopback interface; without this line each of them logs a warning about it.
mkdir -p .venv/etc/ipython
echo 'c.IPKernelApp.log_level = 40' > .venv/etc/ipython/ipython_kernel_config.py
# Notebooks are cleaned on save, in this environment only: nothing is written to the user's home.
mkdir -p .venv/etc/jupyter
cp scripts/jupyter_server_config.py .venv/etc/jupyter/
bash scripts/configure_git.sh
