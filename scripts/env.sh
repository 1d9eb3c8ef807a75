# Puts the tracker's Python, ROS 2 and the built package on this shell's path:
#
#     . scripts/env.sh
#
# Works in bash and zsh from anywhere, in a plain sh from the repository's root. Sourcing it
# twice changes nothing more.
# shellcheck shell=sh

_vil_prepend() { # NAME DIRECTORY: puts DIRECTORY first in the path variable NAME, once
    eval "_vil_old=\${$1:-}"
    case ":$_vil_old:" in
        *":$2:"*) ;;
        *) export "$1=$2${_vil_old:+:$_vil_old}" ;;
    esac
}

_vil_enter() {
    if [ ! -f "$_vil_root/.venv/.complete" ]; then
        echo "The tracker is not set up in $_vil_root: run 'make setup' there first." >&2
        return 1
    fi
    _vil_ros=$(cat "$_vil_root/.venv/.ros")
    if [ "$_vil_ros" != pypi ] && [ "${ROS_DISTRO:-}" != "$_vil_ros" ]; then
        echo "Set up for ROS 2 $_vil_ros: run '. /opt/ros/$_vil_ros/setup.sh' first." >&2
        return 1
    fi

    export VIRTUAL_ENV="$_vil_root/.venv"
    _vil_prepend PATH "$VIRTUAL_ENV/bin"
    if [ "$_vil_ros" = pypi ]; then
        _vil_prepend AMENT_PREFIX_PATH "$VIRTUAL_ENV"
        _vil_prepend CMAKE_PREFIX_PATH "$VIRTUAL_ENV"
        # Another environment's mark would keep this one's Python from finding its libraries.
        unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
    fi
    if [ -d "$_vil_root/.ros/install" ]; then
        _vil_prepend AMENT_PREFIX_PATH "$_vil_root/.ros/install"
        _vil_prepend LD_LIBRARY_PATH "$_vil_root/.ros/install/lib"
        _vil_python=$(find "$_vil_root/.ros/install/lib" -maxdepth 2 -name '*-packages')
        _vil_prepend PYTHONPATH "$_vil_python"
    fi

    # Nothing leaves this machine unless asked to; and Fast DDS's default transport drops most
    # large best-effort images between processes.
    export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
    if [ -z "${FASTDDS_BUILTIN_TRANSPORTS:-}" ]; then
        _vil_profiles="$_vil_root/config/fastdds.xml"
        export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_vil_profiles}"
    fi
}

if [ -n "${BASH_SOURCE:-}" ]; then
    _vil_root=$(cd "$(dirname "$BASH_SOURCE")/.." && pwd)
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval '_vil_root=${${(%):-%x}:A:h:h}'
else
    _vil_root=$PWD
fi
_vil_enter
_vil_status=$?
unset -f _vil_prepend _vil_enter
unset _vil_root _vil_ros _vil_old _vil_python _vil_profiles
eval "unset _vil_status; return $_vil_status"
