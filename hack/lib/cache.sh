# shellcheck shell=bash disable=SC2034
# What was downloaded or built, outside the checkout, keyed by what it was made from.

DBRANCH_CACHE="${DBRANCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/dbranch}"
BIN_DIR="$DBRANCH_CACHE/bin"
STATE_DIR="$DBRANCH_CACHE/state"

# take_lock: one caller at a time changes engine, cluster and cache. Daemons must not inherit fd 9.
take_lock() {
    mkdir -p "$DBRANCH_CACHE"
    exec 9>"$DBRANCH_CACHE/lock"
    flock -n 9 || {
        say "waiting for another hack/cluster or hack/images to end"
        flock 9
    }
}

# key_of WORD-OR-FILE…: a short hash; of a file its contents, of a directory all its files.
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

# intact DIR: the list of checksums is written last, so what it names is complete.
intact() {
    [[ -f $1/.sums ]] && (cd "$1" && sha256sum --quiet --strict --check .sums) >/dev/null 2>&1
}

# cached DIR TITLE FUNCTION [ARGUMENT…]: FUNCTION fills the directory given as its last argument; an
# interrupted or damaged one is made again.
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
