# shellcheck shell=bash disable=SC2153
# One kind cluster: made, mended, looked at, taken away with all that it left on the machine.

cluster_dir() { echo "$DBRANCH_CACHE/clusters/$NAME"; }
kubeconfig() { echo "$(cluster_dir)/kubeconfig"; }
kube() { kubectl --kubeconfig "$(kubeconfig)" --request-timeout "${KUBE_TIMEOUT:-5s}" "$@"; }
way() { cat "$(cluster_dir)/way" 2>/dev/null || true; }

# node_containers [FORMAT]: of this cluster, running or not.
node_containers() {
    local names='{{.Names}}'
    docker ps -a --filter "label=io.x-k8s.kind.cluster=$NAME" --format "${1:-$names}" | LC_ALL=C sort
}

# choose_way: kind with official images where they can be pulled, otherwise with images built here.
choose_way() {
    local reason
    if [[ -n ${DBRANCH_WAY:-} ]]; then
        WAY=$DBRANCH_WAY
    elif docker image inspect "$KIND_NODE_IMAGE" >/dev/null 2>&1; then
        WAY=pulled
    elif reason=$(timeout 180 docker pull -q "$PULLED_BASE_IMAGE" 2>&1); then
        WAY=pulled
    else
        WAY=built
        say "no image can be pulled: ${reason##*$'\n'}"
    fi
    case $WAY in
    pulled) say "way 2: kind $KIND_VERSION with the official images of Kubernetes $KUBE_VERSION" ;;
    built) say "way 3: kind $KIND_VERSION with Kubernetes $KUBE_VERSION built from package registries" ;;
    *) die "DBRANCH_WAY must be pulled or built, not $WAY" ;;
    esac
}

# kubectl_from_node IMAGE DIR: the node image brings the kubectl of its own version.
kubectl_from_node() {
    local container code=0
    container=$(docker create "$1")
    docker cp -L "$container:/usr/bin/kubectl" "$2/kubectl" || code=$?
    docker rm -fv "$container" >/dev/null
    return "$code"
}

need_parts() {
    build_kind_and_helm
    if [[ $WAY == pulled ]]; then
        NODE_IMAGE=$KIND_NODE_IMAGE
        docker image inspect "$NODE_IMAGE" >/dev/null 2>&1 || step "pulling $NODE_IMAGE" docker pull -q "$NODE_IMAGE"
        cached "$DBRANCH_CACHE/kubectl-$KUBE_VERSION" "taking kubectl out of the node image" kubectl_from_node "$NODE_IMAGE"
        link_bin kubectl "$DBRANCH_CACHE/kubectl-$KUBE_VERSION/kubectl"
    else
        [[ $(id -u) == 0 ]] || die "building the images from packages needs root"
        build_kubernetes
        need_node_image
        NODE_IMAGE=$(built_node_image)
    fi
}

# The limit of pods is kubelet's, of 110, raised to what a node's 254 addresses allow: two hundred branches are measured.
kind_config() {
    local number
    printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n'
    printf 'kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  maxPods: 240\n'
    printf 'nodes:\n- role: control-plane\n'
    for ((number = 0; number < WORKERS; number++)); do printf -- '- role: worker\n'; done
}

create_cluster() {
    kind_config | kind create cluster --name "$NAME" --image "$NODE_IMAGE" --kubeconfig "$(kubeconfig)" --wait 180s --config -
}

# settled: the API answers, every node has reported since the given time (seconds of the epoch), names resolve.
settled() {
    local since=$1 nodes expected
    expected=$(node_containers | wc -l)
    kube get --raw /readyz >/dev/null || return 1
    # A node that died looks Ready until its lease runs out, so only a lease renewed since counts.
    nodes=$(kube get leases -n kube-node-lease -o 'go-template={{range .items}}{{.spec.renewTime}}{{"\n"}}{{end}}' |
        while read -r renewed; do (($(date -d "$renewed" +%s) >= since)) && echo renewed; done | wc -l)
    ((nodes >= expected)) || return 1
    nodes=$(kube get nodes -o 'go-template={{range .items}}{{range .status.conditions}}{{if eq .type "Ready"}}{{.status}}{{"\n"}}{{end}}{{end}}{{end}}' | grep -cx True)
    ((nodes == expected)) || return 1
    [[ -z $(kube get pods -n kube-system --no-headers | awk '{split($2, n, "/"); if (n[1] != n[2]) print}') ]] || return 1
    kube get serviceaccount default -n default >/dev/null
}

wait_settled() {
    local since=$1 limit=$2 began=$SECONDS
    until settled "$since"; do
        ((SECONDS - began < limit)) || { kube get nodes,pods -A; return 1; }
        sleep 1
    done
}

make_cluster() {
    local began
    began=$(date +%s)
    if [[ -n $(node_containers) ]]; then remove_cluster; fi
    docker network inspect kind >/dev/null 2>&1 || touch "$STATE_DIR/kind_network"
    mkdir -p "$(cluster_dir)"
    rm -f "$(cluster_dir)/made"
    echo "$WAY" >"$(cluster_dir)/way"
    fence_routes
    step "making the kind cluster $NAME of $((WORKERS + 1)) node(s)" create_cluster
    step "waiting until every node is ready" wait_settled "$began" 180
    chmod 600 "$(kubeconfig)"
    echo "$NODE_IMAGE" >"$(cluster_dir)/made"
}

start_nodes() { node_containers | xargs docker start; }

# mend_cluster: a cluster whose engine or machine went down is started again.
mend_cluster() {
    local stopped began
    began=$(date +%s)
    stopped=$(node_containers '{{.Names}} {{.State}}' | grep -cv ' running$' || true)
    if ((stopped == 0)) && KUBE_TIMEOUT=3s settled $((began - 60)) 2>/dev/null; then
        say "the cluster $NAME is up"
        fence_routes
        return 0
    fi
    say "the cluster $NAME is there, but not well ($stopped node(s) stopped): mending it"
    fence_routes
    step "starting the nodes of $NAME" start_nodes || return 1
    step "waiting until every node is ready" wait_settled "$began" 120
}

kind_up() {
    local nodes
    need_command flock util-linux
    engine_up
    nodes=$(node_containers | wc -l)
    if ((nodes > 0)) && [[ -f $(cluster_dir)/made && -f $(kubeconfig) ]]; then
        if [[ -n $WORKERS ]] && ((nodes != WORKERS + 1)); then
            die "the cluster $NAME has $nodes node(s), not $((WORKERS + 1)); take it down first: hack/cluster down --name $NAME"
        fi
        WAY=$(way) NODE_IMAGE=$(cat "$(cluster_dir)/made") WORKERS=$((nodes - 1))
        if [[ -x $BIN_DIR/kind && -x $BIN_DIR/kubectl && -x $BIN_DIR/helm ]] && mend_cluster; then return 0; fi
        say "the cluster $NAME could not be mended: making it again"
    elif ((nodes > 0)); then
        say "the cluster $NAME was not finished: making it again"
    fi
    WORKERS=${WORKERS:-0}
    choose_way
    need_parts
    make_cluster
}

# Loop devices belong to the machine, not to a node: those whose image lies in a node's volume (or lay
# in one that is gone) outlive the node. Lines "device inode".
node_loops() {
    local volume name inode device back
    losetup -l -n -O NAME,BACK-INO,BACK-MAJ:MIN 2>/dev/null | while read -r name inode device; do
        for volume in $(node_containers | xargs -r docker inspect -f '{{range .Mounts}}{{if eq .Type "volume"}}{{.Source}}{{"\n"}}{{end}}{{end}}'); do
            # losetup and stat write the device differently.
            back=$(stat -c '%d' "$volume")
            [[ ${device// /} == "$(((back >> 8) & 0xfff)):$(((back & 0xff) | ((back >> 12) & 0xfff00)))" ]] || continue
            if [[ -n $(find "$volume" -xdev -inum "$inode" -print -quit) ]]; then
                echo "$name $inode"
                break
            fi
        done
    done
}

detach_loops() {
    local name inode
    while read -r name inode; do
        [[ -n $name && $(losetup -n -O BACK-INO "$name" 2>/dev/null | tr -d ' ') == "$inode" ]] || continue
        say "detaching $name, which $NAME left attached"
        losetup -d "$name" || true
    done
}

# Nodes that others removed (pytest-kind) took their volumes along: a pool whose image is deleted is
# nobody's once no node is left.
orphaned_loops() {
    losetup -l -n -O NAME,BACK-INO,BACK-FILE 2>/dev/null | awk '$3 ~ /\/pools\/[^\/]*\.img$/ && $4 == "(deleted)" {print $1, $2}'
}

remove_cluster() {
    local loops volumes
    volumes=$(node_containers | xargs -r docker inspect -f '{{range .Mounts}}{{if eq .Type "volume"}}{{.Name}}{{"\n"}}{{end}}{{end}}')
    loops=$(if [[ $(id -u) == 0 ]]; then node_loops; fi)
    step "removing the nodes of $NAME" remove_nodes
    detach_loops <<<"$loops"
    xargs -r docker volume rm -f <<<"$volumes" >/dev/null 2>&1 || true
}

remove_nodes() { node_containers | xargs -r docker rm -fv; }

kind_down() {
    local others
    if ! docker_ok; then
        if [[ ! -d $(cluster_dir) && ! -d $ENGINE_DIR ]]; then
            say "there is no cluster $NAME"
            return 0
        fi
        # Containers and volumes can only be removed by an engine that runs.
        engine_up
    fi
    if [[ -n $(node_containers) ]]; then remove_cluster; else say "the cluster $NAME has no nodes"; fi
    rm -rf "$(cluster_dir)"
    others=$(docker ps -aq --filter label=io.x-k8s.kind.cluster | wc -l)
    if ((others == 0)); then
        if [[ $(id -u) == 0 ]]; then detach_loops <<<"$(orphaned_loops)"; fi
        unfence_routes
        if [[ -f $STATE_DIR/kind_network ]]; then
            docker network rm kind >/dev/null 2>&1 || true
            rm -f "$STATE_DIR/kind_network"
        fi
        engine_down
    fi
}

kind_status() {
    say "kind cluster $NAME, way: $(way)"
    if ! docker_ok; then
        say "no Docker engine answers"
        return 1
    fi
    if [[ -z $(node_containers) ]]; then
        say "it has no nodes"
        return 1
    fi
    node_containers '{{.Names}}: {{.Status}}, {{.Image}}'
    kube get nodes -o wide
    settled $(($(date +%s) - 60))
}
