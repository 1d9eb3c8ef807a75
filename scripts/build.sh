#!/usr/bin/env bash
# Builds the ROS package into .ros/install, and vision_msgs before it where none is installed.
# Returns at once when nothing that the build reads has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
log=.ros/build.log

# Contents of what is compiled, and only the names of what is linked into the install space.
mark=$(
    {
        find CMakeLists.txt package.xml msg srv underlay scripts/build.sh .venv/.complete \
            -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
        find vil_tracker_ros launch config clips -type f -not -name '*.pyc' | LC_ALL=C sort
    } | sha256sum
)
if [ "$(cat .ros/install/.complete 2>/dev/null)" = "$mark" ]; then
    exit 0
fi

# The stand-in is built where vision_msgs is found nowhere but in an earlier build of it.
paths=(.)
found=$(python -c 'from ament_index_python import get_package_prefix as at; print(at("vision_msgs"))' \
    2>/dev/null || true)
if [ -z "$found" ] || [ "$found" = "$PWD/.ros/install" ]; then
    paths+=(underlay/vision_msgs)
fi
# A link whose file has gone would stay behind in the install space.
[ ! -d .ros/install ] || find .ros/install -xtype l -delete
mkdir -p .ros
echo "build: ${paths[*]}"
# colcon's own choice also bounds the load, which starves the build beside any other busy process.
export MAKEFLAGS=-j$(nproc)
if ! colcon --log-base .ros/log build --paths "${paths[@]}" \
    --build-base .ros/build --install-base .ros/install --merge-install --symlink-install \
    --event-handlers console_direct+ \
    --cmake-args -DBUILD_TESTING=ON >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    echo "build: failed; all of its output is in $log" >&2
    exit 1
fi
echo "$mark" >.ros/install/.complete
