# shellcheck shell=bash
# What is going on, and for how long. Everything goes to stderr: stdout is for results.

LOG_DIR="${DBRANCH_LOG_DIR:-${DBRANCH_CACHE:-$HOME/.cache/dbranch}/log}"
STEP_EVERY="${STEP_EVERY:-15}"
STEP_TAIL="${STEP_TAIL:-40}"

# say TEXT: a line with the time of day.
say() { printf '[%(%H:%M:%S)T] %s\n' -1 "$*" >&2; }

# die TEXT: says why, and ends with 1.
die() {
    say "error: $*"
    exit 1
}

# spell SECONDS: 150 becomes 2m30s.
spell() {
    local seconds=$1
    if ((seconds < 60)); then printf '%ds' "$seconds"; else printf '%dm%02ds' $((seconds / 60)) $((seconds % 60)); fi
}

# step TITLE COMMAND [ARGUMENT…]: runs a command or function with its output in a log file and says
# that it began, that it goes on, how long it took; on failure the end of the log and its exit code.
# It runs in a process group of its own, so that an interrupted step leaves nothing running.
step() {
    local title=$1 began=$SECONDS said=$SECONDS log monitor pid code=0 pause=0.05
    shift
    mkdir -p "$LOG_DIR"
    log="$LOG_DIR/$(printf '%s' "$title" | tr -cs 'A-Za-z0-9._-' '-').$$.log"
    say "$title …"
    monitor=$(set +o | grep ' monitor$')
    set -m
    ("$@") </dev/null >"$log" 2>&1 &
    pid=$!
    eval "$monitor"
    # shellcheck disable=SC2064
    trap "kill -TERM -- -$pid 2>/dev/null; trap - INT TERM; exit 130" INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep "$pause"
        if ((SECONDS - began > 2)); then pause=0.5; fi
        if ((SECONDS - said >= STEP_EVERY)); then
            said=$SECONDS
            say "… still: $title ($(spell $((SECONDS - began))))"
        fi
    done
    wait "$pid" || code=$?
    trap - INT TERM
    if ((code == 0)); then
        say "done: $title ($(spell $((SECONDS - began))))"
        rm -f "$log"
        return 0
    fi
    say "failed: $title (exit code $code after $(spell $((SECONDS - began)))); the end of $log:"
    tail -n "$STEP_TAIL" "$log" >&2
    return "$code"
}
