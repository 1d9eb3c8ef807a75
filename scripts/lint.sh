#!/usr/bin/env bash
# Style, types and the direction of imports: one line for each check that passes, all of the
# output of one that does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh

status=0
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        echo "$name: $(tail -n 1 <<<"$output")"
    else
        echo "$name: FAILED"
        echo "$output"
        status=1
    fi
}

check "ruff check" ruff check
check "ruff format" ruff format --check
check "mypy" mypy
check "lint-imports" lint-imports --no-cache
exit $status
