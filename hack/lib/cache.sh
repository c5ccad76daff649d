# shellcheck shell=bash disable=SC2034
# The cache of downloads and builds, outside the checkout, keyed by their inputs.

DBRANCH_CACHE="${DBRANCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dbranch}"
BIN_DIR="$DBRANCH_CACHE/bin"
STATE_DIR="$DBRANCH_CACHE/state"

# take_lock: wait for the lock that serializes changes of engine, cluster and cache. Daemons must not inherit fd 9.
take_lock() {
    mkdir -p "$DBRANCH_CACHE"
    exec 9>"$DBRANCH_CACHE/lock"
    flock -n 9 || {
        say "waiting for another hack/cluster or hack/images to finish"
        flock 9
    }
}

# key_of TEXT-OR-PATH…: print a short hash of texts, files' contents and directories' files.
key_of() {
    local item
    for item in "$@"; do
        if [[ -d $item ]]; then
            (cd "$item" && find . -type f ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0r sha256sum)
        elif [[ -f $item ]]; then
            sha256sum <"$item"
        else
            printf '%s\n' "$item"
        fi
    done | sha256sum | cut -c1-12
}

# intact DIR: true if the files match the list of checksums, which is written last.
intact() {
    [[ -f $1/.sums ]] && (cd "$1" && sha256sum --quiet --strict --check .sums) >/dev/null 2>&1
}

# cached DIR TITLE FUNCTION [ARGUMENT…]: unless DIR is intact, let FUNCTION fill the directory passed as its last
# argument, and move that to DIR. An interrupted or damaged DIR is built again.
cached() {
    local dir=$1 title=$2 work
    shift 2
    if intact "$dir"; then return 0; fi
    work="$dir.new"
    rm -rf "$dir" "$work"
    mkdir -p "$work"
    step "$title" "$@" "$work"
    (cd "$work" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum) >"$dir.sums"
    sync -f "$dir.sums"
    mv "$dir.sums" "$work/.sums"
    mv "$work" "$dir"
}
