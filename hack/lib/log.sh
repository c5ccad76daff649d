# shellcheck shell=bash
# Progress messages with durations. They go to stderr; stdout is for results.

LOG_DIR="${DBRANCH_LOG_DIR:-${DBRANCH_CACHE:-$HOME/.cache/dbranch}/log}"
STEP_REPORT_SECONDS="${STEP_REPORT_SECONDS:-15}"
STEP_TAIL_LINES="${STEP_TAIL_LINES:-40}"

# say TEXT: print a line with the time of day.
say() { printf '[%(%H:%M:%S)T] %s\n' -1 "$*" >&2; }

# die TEXT: print an error and exit with 1.
die() {
    say "error: $*"
    exit 1
}

# spell SECONDS: print a duration, e.g. 2m30s for 150.
spell() {
    local seconds=$1
    if ((seconds < 60)); then printf '%ds' "$seconds"; else printf '%dm%02ds' $((seconds / 60)) $((seconds % 60)); fi
}

# step TITLE COMMAND [ARGUMENT…]: run a command or function with its output in a log file. Print that it starts, that
# it is still running, and how long it took; on failure the end of the log and the exit code.
# It runs in a process group of its own, so that an interrupted step leaves no process behind.
step() {
    local title=$1 began=$SECONDS last_report=$SECONDS log monitor pid code=0 pause=0.05
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
        if ((SECONDS - last_report >= STEP_REPORT_SECONDS)); then
            last_report=$SECONDS
            say "… still running: $title ($(spell $((SECONDS - began))))"
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
    tail -n "$STEP_TAIL_LINES" "$log" >&2
    return "$code"
}
