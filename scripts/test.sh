#!/usr/bin/env bash
# Runs the tests through colcon, as a workspace would, and ends with pytest's own summary line.
# The exit status is 0 only where every test passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
log=.ros/test.log

# ctest puts "1: " before each line of pytest's, among bookkeeping of its own. The summary is held
# back, to be printed last.
summary='^=+ .*(passed|failed|error|skipped|no tests ran).* in [0-9.]+s.*=+$'
status=0
colcon --log-base .ros/log test --paths . --packages-select vil_tracker_ros \
    --build-base .ros/build --install-base .ros/install --merge-install \
    --event-handlers console_direct+ --return-code-on-test-failure 2>&1 |
    tee "$log" |
    sed -u -n -E '/test session starts/,$ s/^[0-9]+: //p' |
    { grep --line-buffered -vE "$summary|^-- run_test.py" || true; } || status=$?

if ! line=$(sed -n -E 's/^[0-9]+: //p' "$log" | grep -E "$summary" | tail -n 1); then
    tail -n 25 "$log" >&2
    echo "test: pytest did not finish; all of the output is in $log" >&2
    exit 1
fi
echo "$line"
exit $status
