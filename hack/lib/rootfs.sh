# shellcheck shell=bash
# Build minimal Debian systems from the machine's own package sources, and keep images in the cache.

# debian_source SUITE: print a sources.list line for SUITE on the mirror that this machine uses.
debian_source() {
    local uri
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" && $3 == "main" {print $4; exit}')
    if [[ -z $uri ]]; then
        echo "no Debian package source is configured on this machine (apt-get indextargets)" >&2
        return 1
    fi
    echo "deb $uri $1 main"
}

# debian_rootfs SUITE PACKAGES DIR: build a minimal system as DIR/rootfs.tar.
debian_rootfs() {
    local suite=$1 packages=$2 dir=$3 source kept what
    local options=(--variant=minbase --aptopt="$dir/apt.conf")
    source=$(debian_source "$suite")
    # Use the machine's proxies and its settings for mirrors.
    apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until|Check-Date)' >"$dir/apt.conf" || true
    for what in man doc locale info lintian; do options+=(--dpkgopt="path-exclude=/usr/share/$what/*"); done
    for kept in /usr/share/locale/locale.alias '/usr/share/doc/*/copyright'; do options+=(--dpkgopt="path-include=$kept"); done
    if [[ -n $packages ]]; then options+=(--include="$packages"); fi
    mmdebstrap "${options[@]}" "$suite" "$dir/rootfs.tar" "$source"
    rm -f "$dir/apt.conf"
}

# rootfs_dir SUITE PACKAGES: print the directory of its rootfs.tar.
rootfs_dir() { echo "$DBRANCH_CACHE/rootfs-$1-$(key_of "$1" "$2" "$(declare -f debian_rootfs)")"; }

make_rootfs() {
    local suite=$1 packages=$2 dir
    dir=$(rootfs_dir "$suite" "$packages")
    if intact "$dir"; then return 0; fi
    can_apt || die "building images from packages needs root on a Debian system"
    [[ -n $APT_FRESH ]] || { step "reading the package lists" apt_retry update; APT_FRESH=1; }
    need_command mmdebstrap mmdebstrap zstd zstd
    # An older Debian does not have the keys of a newer suite.
    compgen -G "/usr/share/keyrings/debian-archive-$suite-stable*" >/dev/null || need_packages debian-archive-keyring
    cached "$dir" "building a minimal Debian $suite" debian_rootfs "$suite" "$packages"
}

image_key() { docker image inspect -f '{{index .Config.Labels "dbranch.key"}}' "$1" 2>/dev/null || true; }

image_dir() { echo "$DBRANCH_CACHE/image-$(printf '%s' "$1" | tr -c 'A-Za-z0-9.-' '-')-$2"; }

# need_image NAME KEY FUNCTION [ARGUMENT…]: make sure that the engine has the image. FUNCTION builds it, labelled with
# KEY; a copy is kept in the cache in case the engine loses it.
need_image() {
    local name=$1 key=$2 dir
    shift 2
    if [[ $(image_key "$name") == "$key" ]]; then return 0; fi
    need_command zstd zstd
    dir=$(image_dir "$name" "$key")
    if intact "$dir"; then
        step "loading $name from the cache" load_image "$dir"
        return 0
    fi
    step "building $name" "$@" "$name" "$key"
    cached "$dir" "saving $name to the cache" keep_image "$name"
    # Keep only the newest version of each image.
    find "$DBRANCH_CACHE" -maxdepth 1 -name "image-${name%%:*}-*" ! -name "$(basename "$dir")" -exec rm -rf {} +
    docker images --format '{{.Repository}}:{{.Tag}}' "${name%%:*}" | grep -vxF "$name" | xargs -r docker image rm >/dev/null 2>&1 || true
}

keep_image() { docker save "$1" | zstd -q -3 -T0 -o "$2/image.tar.zst"; }
load_image() { zstd -dc "$1/image.tar.zst" | docker load; }

import_rootfs() {
    local dir=$1 name=$2 key=$3
    docker import --change "LABEL dbranch.key=$key" --change 'CMD ["bash"]' "$dir/rootfs.tar" "$name"
}

# docker_build NAME KEY CONTEXT [OPTION…]: build an image, with BuildKit if available. Otherwise build with the host's
# network, which needs no IP forwarding.
docker_build() {
    local name=$1 key=$2 context=$3 options=()
    shift 3
    if docker buildx version >/dev/null 2>&1; then
        options+=(--load)
        export DOCKER_BUILDKIT=1
    else
        options+=(--network host --force-rm)
        export DOCKER_BUILDKIT=0
    fi
    docker build "${options[@]}" --label "dbranch.key=$key" -t "$name" "$@" "$context"
}

# The substitute for Debian's base image has a name of its own.
base_key() { key_of "$(basename "$(rootfs_dir "$BASE_SUITE" "")")"; }

need_base_image() {
    if [[ $(image_key "$BUILT_BASE_IMAGE") == "$(base_key)" ]]; then return 0; fi
    make_rootfs "$BASE_SUITE" ""
    step "importing $BUILT_BASE_IMAGE" import_rootfs "$(rootfs_dir "$BASE_SUITE" "")" "$BUILT_BASE_IMAGE" "$(base_key)"
}
