#!/bin/sh
# Fails when what was just built of the console differs from what is committed.
set -eu
cd "$(dirname "$0")/../.."
changed=$(git status --porcelain --untracked-files=all -- server/console/built)
[ -z "$changed" ] && exit 0
printf 'the built console is not what its sources give; commit the result of `make console`:\n%s\n' "$changed" >&2
exit 1
