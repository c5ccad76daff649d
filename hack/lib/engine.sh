# shellcheck shell=bash
# The Docker engine: an existing one, or one that is started here and stopped by `hack/cluster down`.

ENGINE_DIR="$STATE_DIR/engine"
DOCKERD_PIDFILE="$ENGINE_DIR/dockerd.pid"

docker_ok() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

# started_at PID: print the start time of a process. With the pid it identifies the process until the next boot.
started_at() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command in parentheses may hold spaces; field 22 is the twentieth after it.
    read -ra stat <<<"${stat##*) }"
    echo "${stat[19]}"
}

# alive PID [NAME]: true if the process (with that command name) runs; a zombie does not.
alive() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    [[ ${stat##*) } != [ZX]* && (-z ${2:-} || $(cat "/proc/$1/comm" 2>/dev/null) == "${2:-}") ]]
}

# own_dockerd: print the pid of the engine started here if it runs. Its command line contains our pid file.
own_dockerd() {
    local pid
    pid=$(cat "$DOCKERD_PIDFILE" 2>/dev/null) || return 1
    [[ $pid =~ ^[0-9]+$ ]] && alive "$pid" && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "--pidfile $DOCKERD_PIDFILE " || return 1
    if [[ -f $ENGINE_DIR/started_at ]]; then
        [[ $(started_at "$pid") == "$(cat "$ENGINE_DIR/started_at")" ]] || return 1
    fi
    echo "$pid"
}

# bounding_set_is_full: true if this process may gain every capability that the kernel knows.
bounding_set_is_full() {
    local key value last
    last=$(cat /proc/sys/kernel/cap_last_cap)
    while read -r key value; do
        if [[ $key == CapBnd: ]]; then ((16#$value == (1 << (last + 1)) - 1)) && return 0; fi
    done </proc/self/status
    return 1
}

install_engine() {
    need_command iptables iptables jq jq ip iproute2 dockerd docker.io
    # From Debian trixie on, the client is a separate package.
    need_command docker docker-cli
}

# Mounts that are made in a node must propagate to its pods, so `/` must be shared. The mounts that were private are
# recorded; unshare_mounts makes them private again.
share_mounts() {
    if [[ $(findmnt -no PROPAGATION / | tail -1) == *shared* ]]; then return 0; fi
    findmnt -rno TARGET,PROPAGATION | awk '$2 == "private" {print $1}' >"$ENGINE_DIR/private_mounts"
    mount --make-rshared /
}

unshare_mounts() {
    local target
    [[ -f $ENGINE_DIR/private_mounts ]] || return 0
    while read -r target; do
        target=$(printf '%b' "$target")
        if findmnt -n "$target" >/dev/null; then mount --make-private "$target" || true; fi
    done <"$ENGINE_DIR/private_mounts"
    rm -f "$ENGINE_DIR/private_mounts"
}

# Remove pid files whose process has ended, or is another program that got the same pid.
clear_stale_pidfiles() {
    local file pid name
    for file in "$DOCKERD_PIDFILE:dockerd" /var/run/docker.pid:dockerd /var/run/docker/containerd/containerd.pid:containerd; do
        name=${file##*:} file=${file%:*}
        [[ -f $file ]] || continue
        pid=$(cat "$file")
        alive "$pid" "$name" || rm -f "$file"
    done
}

start_dockerd() {
    local options=(--pidfile "$DOCKERD_PIDFILE" --log-level warn) log="$LOG_DIR/dockerd.log" tries
    if ! bounding_set_is_full; then
        install -m 755 "$HACK/kind/runc-bounded" "$ENGINE_DIR/runc-bounded"
        options+=(--add-runtime "bounded=$ENGINE_DIR/runc-bounded" --default-runtime bounded)
    fi
    mkdir -p "$LOG_DIR"
    ulimit -n "$(ulimit -Hn)" || true
    # It outlives this shell: a session of its own, without terminal, lock and the caller's pipes.
    PATH="$PATH:/usr/sbin:/sbin" setsid -f dockerd "${options[@]}" </dev/null >"$log" 2>&1 9>&-
    for ((tries = 0; tries < 240; tries++)); do
        if [[ -S /var/run/docker.sock ]] && docker_ok; then
            started_at "$(cat "$DOCKERD_PIDFILE")" >"$ENGINE_DIR/started_at"
            return 0
        fi
        # dockerd writes its pid file at once, and removes it when it gives up.
        if ((tries > 20)) && ! own_dockerd >/dev/null; then break; fi
        sleep 0.25
    done
    tail -n 40 "$log"
    return 1
}

# engine_up: make sure that a Docker engine answers; start one if necessary.
engine_up() {
    if docker_ok; then return 0; fi
    [[ -z ${DOCKER_HOST:-} ]] || die "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST"
    [[ $(id -u) == 0 ]] || die "no Docker engine answers; start one, or run this as root so that it can start one"
    install_engine
    if docker_ok; then return 0; fi
    mkdir -p "$ENGINE_DIR"
    if [[ -d /run/systemd/system ]] && systemctl cat docker.service >/dev/null 2>&1; then
        share_mounts
        step "starting the Docker service" systemctl start docker
        touch "$ENGINE_DIR/service"
        docker_ok || die "the Docker service started, but does not answer"
        return 0
    fi
    clear_stale_pidfiles
    rm -f "$ENGINE_DIR/started_at"
    [[ -f $ENGINE_DIR/ip_forward ]] || cat /proc/sys/net/ipv4/ip_forward >"$ENGINE_DIR/ip_forward"
    [[ -d /sys/class/net/docker0 ]] || touch "$ENGINE_DIR/docker0"
    share_mounts
    step "starting a Docker engine" start_dockerd
}

# clear_network: remove the bridge docker0 and the packet filter rules with dockerd's names, if dockerd created them.
clear_network() {
    local family
    if [[ -f $ENGINE_DIR/docker0 ]] && [[ -d /sys/class/net/docker0 ]]; then
        ip link delete docker0 || true
        for family in iptables ip6tables; do
            command -v "$family-save" >/dev/null || continue
            "$family-save" 2>/dev/null | grep -vE 'DOCKER|docker0' | sed 's/^:FORWARD DROP/:FORWARD ACCEPT/' | "$family-restore" 2>/dev/null || true
        done
    fi
    if [[ -f $ENGINE_DIR/ip_forward ]]; then cat "$ENGINE_DIR/ip_forward" >/proc/sys/net/ipv4/ip_forward; fi
}

stop_dockerd() {
    local pid=$1 tries target
    kill -TERM "$pid"
    for ((tries = 0; tries < 240; tries++)); do
        alive "$pid" || break
        sleep 0.25
    done
    ! alive "$pid" || { echo "dockerd ($pid) does not terminate"; return 1; }
    # If no mounts are left, grep fails; that is not an error.
    { findmnt -rno TARGET | grep -E '^(/var)?/run/docker/|^/var/lib/docker/' || true; } | LC_ALL=C sort -r | while read -r target; do
        umount "$(printf '%b' "$target")" || true
    done
    clear_network
}

# engine_down: stop the engine that was started here, unless containers still run in it.
engine_down() {
    local pid running
    [[ -d $ENGINE_DIR ]] || return 0
    if [[ -f $ENGINE_DIR/service ]] || own_dockerd >/dev/null; then
        running=$(docker ps -q 2>/dev/null | wc -l)
        if ((running > 0)); then
            say "the Docker engine keeps running: it has $running other containers"
            return 0
        fi
    fi
    if [[ -f $ENGINE_DIR/service ]]; then
        step "stopping the Docker service" systemctl stop docker.socket docker
    elif pid=$(own_dockerd); then
        step "stopping the Docker engine (pid $pid)" stop_dockerd "$pid"
    fi
    unshare_mounts
    rm -rf "$ENGINE_DIR"
}
