#!/usr/bin/env bash
# Every check, fastest first. Uncommitted work is checked too; nothing in the checkout changes.
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

step "1/6 the library is what the notebooks export"
(cd "$copy" && nbdev_export)
same langsamp "langsamp/ (<) is not what nbs/ exports (>): edit the notebook, then make export"

step "2/6 the notebooks are clean"
(cd "$copy" && nbdev_clean)
same nbs "notebooks are not clean (< current, > cleaned): make export"

step "3/6 lint and format"
ruff check --quiet --output-format concise nbs tests scripts setup.py
ruff format --check --quiet nbs tests scripts setup.py || { echo "check: make export fixes the format" >&2; exit 1; }

step "4/6 types"
ty check --output-format concise

step "5/6 docs site, while the tests begin"
docs() {
    (cd "$copy" && python scripts/build_docs.py)
    same nbs "the docs site's generated files changed: make docs, and keep nbs/nbdev.yml"
}
docs > "$copy/docs.log" 2>&1 &
building=$!

step "6/6 tests"
# A file stays in one process, which makes its fixtures once; tests/conftest.py puts the longest files first
python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder || tested=$?
wait "$building" || built=$?
cat "$copy/docs.log"
exit $((${tested:-0} || ${built:-0}))
