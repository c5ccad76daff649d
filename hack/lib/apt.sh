# shellcheck shell=bash
# Tools of the system: installed where that can be done unasked, otherwise named.

APT_FRESH=${APT_FRESH:-}

can_apt() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

# A mirror that answers badly once usually answers the next time.
apt_retry() {
    local try
    for try in 1 2 3; do
        if DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; then return 0; fi
        sleep $((try * 3))
    done
    return 1
}

apt_install() {
    apt_retry install -y --no-install-recommends "$@"
}

# need_packages PACKAGE…: installs them, or says how.
need_packages() {
    can_apt || die "missing: $*; install with: sudo apt-get install -y --no-install-recommends $*"
    if [[ -z $APT_FRESH ]]; then
        step "reading the package lists" apt_retry update
        APT_FRESH=1
    fi
    step "installing $*" apt_install "$@"
}

# need_command COMMAND PACKAGE [COMMAND PACKAGE …]: every command is there afterwards.
need_command() {
    local packages=()
    while (($#)); do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || packages+=("$2")
        shift 2
    done
    ((${#packages[@]} == 0)) || need_packages "${packages[@]}"
}
