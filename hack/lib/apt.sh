# shellcheck shell=bash
# Install missing system tools with apt if run as root on Debian; otherwise print how to install them.

APT_FRESH=${APT_FRESH:-}

can_apt() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

# apt_retry ARGUMENT…: run apt-get, up to three times: a mirror that fails once usually works the next time.
apt_retry() {
    local attempt
    for attempt in 1 2 3; do
        if DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; then return 0; fi
        sleep $((attempt * 3))
    done
    return 1
}

apt_install() {
    apt_retry install -y --no-install-recommends "$@"
}

# need_packages PACKAGE…: install packages, or print how and exit.
need_packages() {
    can_apt || die "missing: $*; install with: sudo apt-get install -y --no-install-recommends $*"
    if [[ -z $APT_FRESH ]]; then
        step "reading the package lists" apt_retry update
        APT_FRESH=1
    fi
    step "installing $*" apt_install "$@"
}

# need_command COMMAND PACKAGE [COMMAND PACKAGE …]: install the package of every command that is missing.
need_command() {
    local packages=()
    while (($#)); do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || packages+=("$2")
        shift 2
    done
    ((${#packages[@]} == 0)) || need_packages "${packages[@]}"
}
