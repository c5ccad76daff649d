# shellcheck shell=bash disable=SC2153
# Build the server image and the Postgres image, and load them into the nodes.

project_version() { sed -n 's/^version *= *"\(.*\)"$/\1/p' "$HACK/../pyproject.toml" | head -1; }

# server_key [ROOT]: print a hash of the server image's inputs. It is part of the tag, so that an upgrade rolls out
# every change.
server_key() {
    local root=${1:-$HACK/..}
    key_of "$root/operator/dbranch" "$root/operator/Dockerfile" "$root/operator/requirements.lock"
}

server_image() { echo "${DBRANCH_IMAGE_PREFIX:-}dbranch-server:$(project_version)-${1:-$(server_key)}"; }

# postgres_image: print the image for WAY: that of the cluster, or the one chosen for a build without a cluster.
postgres_image() {
    if [[ ${WAY:-$(way)} == built ]]; then echo "$BUILT_POSTGRES_IMAGE"; else echo "$PULLED_POSTGRES_IMAGE"; fi
}

# wheels_dir LOCK: print the directory of the wheels for the image's Python; this machine's Python may be another
# version.
wheels_dir() { echo "$DBRANCH_CACHE/wheels-$(key_of "$1" "$(uname -m)")"; }

download_wheels() {
    local lock=$1 dir=${*: -1} venv="$DBRANCH_CACHE/pip" machine libc platforms=()
    machine=$(uname -m)
    for libc in manylinux_2_34 manylinux_2_28 manylinux_2_17 manylinux2014; do platforms+=(--platform "${libc}_$machine"); done
    "$venv/bin/pip" --version >/dev/null 2>&1 || { rm -rf "$venv" && python3 -m venv "$venv"; } || return
    "$venv/bin/pip" --disable-pip-version-check download --quiet --require-hashes --only-binary=:all: --no-deps \
        --implementation cp --python-version 3.13 --abi cp313 --abi abi3 --abi none "${platforms[@]}" \
        --dest "$dir" -r "$lock"
}

# need_wheels LOCK: download the wheels that a requirements.lock names, unless they are in the cache.
need_wheels() {
    intact "$(wheels_dir "$1")" || need_python
    cached "$(wheels_dir "$1")" "downloading the server's dependencies" download_wheels "$1"
}

base_image() { if [[ $WAY == built ]]; then echo "$BUILT_BASE_IMAGE"; else echo "$PULLED_BASE_IMAGE"; fi; }

# copy_code DIR: copy the code, readable for any user in the image. The copy is hashed and built, since files may be
# edited meanwhile.
copy_code() {
    rm -rf "$1"
    mkdir -p "$1/operator" "$1/build/wheels"
    cp -r "$HACK"/../operator/{Dockerfile,dbranch,requirements.lock} "$1/operator/"
    find "$1" -type d -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u+rwX,go+rX,go-w "$1"
}

build_server() {
    local name=$1 key=$2 context=$3
    cp "$(wheels_dir "$context/operator/requirements.lock")"/*.whl "$context/build/wheels/"
    docker_build "$name" "$key" "$context" -f "$context/operator/Dockerfile" --build-arg "BASE=$(base_image)"
}

need_server_image() {
    local key context="$DBRANCH_CACHE/server-work"
    copy_code "$context"
    key=$(server_key "$context")
    SERVER_IMAGE=$(server_image "$key")
    if [[ $(image_key "$SERVER_IMAGE") != "$key" ]]; then
        need_wheels "$context/operator/requirements.lock"
        if [[ $WAY == built ]]; then need_base_image; fi
        step "building $SERVER_IMAGE" build_server "$SERVER_IMAGE" "$key" "$context"
        drop_old_server_images "$SERVER_IMAGE"
    fi
    rm -rf "$context"
    say "$SERVER_IMAGE: $(($(docker image inspect -f '{{.Size}}' "$SERVER_IMAGE") / 1000000)) MB"
}

# drop_old_server_images IMAGE: keep IMAGE and the two newest others.
drop_old_server_images() {
    docker images --filter label=dbranch.key --format '{{.Repository}}:{{.Tag}}' "${1%:*}" | grep -vxF "$1" | tail -n +3 |
        xargs -r docker image rm >/dev/null 2>&1 || true
}

# The release that upgrades are tested from (versions.sh): its image, and its chart as a directory.
release_image() { echo "${DBRANCH_IMAGE_PREFIX:-}dbranch-release:$RELEASE-${RELEASE_COMMIT:0:12}"; }
release_dir() { echo "$DBRANCH_CACHE/release-$RELEASE-${RELEASE_COMMIT:0:12}"; }

unpack_release() { git -C "$HACK/.." archive "$RELEASE_COMMIT" operator helm | tar -x -C "$1"; }

build_release() {
    local name=$1 key=$2 context="$DBRANCH_CACHE/release-work"
    rm -rf "$context"
    mkdir -p "$context/build/wheels"
    cp -r "$(release_dir)/operator" "$context/"
    chmod -R u+rwX,go+rX,go-w "$context"
    build_server "$name" "$key" "$context"
    rm -rf "$context"
}

need_release_image() {
    local name key lock
    git -C "$HACK/.." cat-file -e "$RELEASE_COMMIT^{commit}" 2>/dev/null ||
        die "the commit of release $RELEASE ($RELEASE_COMMIT) is not in this clone; get the whole history: git fetch --unshallow"
    cached "$(release_dir)" "unpacking release $RELEASE" unpack_release
    name=$(release_image) lock="$(release_dir)/operator/requirements.lock"
    key=$(key_of "$RELEASE_COMMIT" "$WAY")
    if [[ $(image_key "$name") == "$key" ]]; then return 0; fi
    need_wheels "$lock"
    if [[ $WAY == built ]]; then need_base_image; fi
    need_image "$name" "$key" build_release
}

build_postgres() {
    local name=$1 key=$2 context
    context=$(mktemp -d "$DBRANCH_CACHE/postgres-work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$context'" EXIT
    docker_build "$name" "$key" "$context" -f "$HACK/kind/postgres.Dockerfile" \
        --build-arg "BASE=$BUILT_BASE_IMAGE" --build-arg "MAJOR=${BUILT_POSTGRES_IMAGE##*:}"
}

need_postgres_image() {
    local name key
    name=$(postgres_image)
    if [[ $WAY == pulled ]]; then
        docker image inspect "$name" >/dev/null 2>&1 || step "pulling $name" docker pull -q "$name"
        return 0
    fi
    key=$(key_of "$(base_key)" "$HACK/kind/postgres.Dockerfile")
    if [[ $(image_key "$name") == "$key" ]]; then return 0; fi
    intact "$(image_dir "$name" "$key")" || need_base_image
    need_image "$name" "$key" build_postgres
    say "$name: $(($(docker image inspect -f '{{.Size}}' "$name") / 1000000)) MB"
}

# in_node NODE IMAGE: true if exactly this image was loaded into the node and is still there.
in_node() {
    # shellcheck disable=SC2016
    docker exec "$1" sh -c '[ "$(cat "/kind/loaded/$1" 2>/dev/null)" = "$2" ] && ctr -n k8s.io images ls -q | grep -qE "(^|/)$3\$"' \
        sh "$(tr / _ <<<"$2")" "$(docker image inspect -f '{{.Id}}' "$2")" "$2"
}

# load_into IMAGE NODE…: load an image into all nodes in parallel, from one copy.
load_into() {
    local image=$1 id copy node jobs=() code=0
    shift
    id=$(docker image inspect -f '{{.Id}}' "$image")
    copy=$(mktemp "$DBRANCH_CACHE/load-work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -f '$copy'" EXIT
    docker save -o "$copy" "$image" || return
    for node in "$@"; do
        {
            docker exec -i "$node" ctr -n k8s.io images import --snapshotter overlayfs - <"$copy" &&
                docker exec "$node" sh -c 'mkdir -p /kind/loaded && printf %s "$2" >"/kind/loaded/$1"' sh "$(tr / _ <<<"$image")" "$id"
        } &
        jobs+=($!)
    done
    for node in "${jobs[@]}"; do wait "$node" || code=1; done
    return "$code"
}

# load_images IMAGE…: load images into the nodes that do not have them.
load_images() {
    local node image nodes
    for image in "$@"; do
        nodes=()
        for node in $(node_containers); do in_node "$node" "$image" || nodes+=("$node"); done
        ((${#nodes[@]} == 0)) || step "loading $image into ${#nodes[@]} node(s)" load_into "$image" "${nodes[@]}"
    done
}

print_env() {
    local node_image
    [[ -f $(kubeconfig) ]] || die "there is no cluster $NAME; create it with: hack/cluster up --name $NAME"
    node_image=$(cat "$(cluster_dir)/made" 2>/dev/null || true)
    printf 'export KUBECONFIG=%q\n' "$(kubeconfig)"
    # Add the directory to PATH only once, so that evaluating twice is harmless.
    # shellcheck disable=SC2016
    printf 'case ":$PATH:" in *:%q:*) ;; *) export PATH=%q:"$PATH" ;; esac\n' "$BIN_DIR" "$BIN_DIR"
    if [[ -n ${DOCKER_HOST:-} ]]; then printf 'export DOCKER_HOST=%q\n' "$DOCKER_HOST"; fi
    printf 'export DBRANCH_POSTGRES_IMAGE=%q DBRANCH_SERVER_IMAGE=%q\n' "$(postgres_image)" "$(server_image)"
    printf 'export DBRANCH_RELEASE_IMAGE=%q DBRANCH_RELEASE_CHART=%q\n' "$(release_image)" "$(release_dir)/helm/dbranch"
    printf 'export DBRANCH_KIND_NAME=%q DBRANCH_KIND_BIN=%q DBRANCH_KUBECTL_BIN=%q DBRANCH_KIND_IMAGE=%q\n' \
        "$NAME" "$BIN_DIR/kind" "$BIN_DIR/kubectl" "$node_image"
}
