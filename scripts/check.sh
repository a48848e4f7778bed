#!/usr/bin/env bash
# Every check; a wrong format stops them at once. Uncommitted work is checked too; nothing in the checkout changes.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

step() { echo "check: $*"; }
same() { diff -r -x __pycache__ -x .ipynb_checkpoints "$here/$1" "$copy/$1" || { echo "check: $2" >&2; exit 1; }; }

cp -R settings.ini scripts nbs langsamp "$copy"
find "$copy/langsamp" -name '*.py' ! -path "$copy/langsamp/__init__.py" -delete

step "1/3 lint and format"
ruff check --quiet --output-format concise nbs tests scripts setup.py
ruff format --check --quiet nbs tests scripts setup.py || { echo "check: make export fixes the format" >&2; exit 1; }

step "2/3 export, clean notebooks, types and docs site, while the tests begin"
library() {
    (cd "$copy" && nbdev_export)
    same langsamp "langsamp/ (<) is not what nbs/ exports (>): edit the notebook, then make export"
    (cd "$copy" && nbdev_clean)
    same nbs "notebooks are not clean (< current, > cleaned): make export"
    ty check --output-format concise
    (cd "$copy" && python scripts/build_docs.py)
    same nbs "the docs site's generated files changed: make docs, and keep nbs/nbdev.yml"
}
library > "$copy/library.log" &  # What is wrong is said at once, on stderr; the log follows the tests
checking=$!

step "3/3 tests"
# A file stays in one process, which makes its fixtures once; tests/conftest.py puts the longest files first
python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder || tested=$?
wait "$checking" || checked=$?
cat "$copy/library.log"
exit $((${tested:-0} || ${checked:-0}))
