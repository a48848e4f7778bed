#!/usr/bin/env bash
# Tell git, in this clone only, how to merge notebooks; scripts/setup.sh calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
# Without git, or unpacked inside another repository, there is nothing to configure.
[ "$(git rev-parse --show-toplevel 2> /dev/null)" = "$(pwd -P)" ] || exit 0
git config --local merge.nbdev-merge.name 'merge notebooks cell by cell'
git config --local merge.nbdev-merge.driver 'PATH=".venv/bin:$PATH" nbdev_merge %O %A %B %P'
