# shellcheck shell=bash disable=SC2153
# Create, repair, check and remove one kind cluster with everything that it leaves on the machine.

cluster_dir() { echo "$DBRANCH_CACHE/clusters/$NAME"; }
kubeconfig() { echo "$(cluster_dir)/kubeconfig"; }
kube() { kubectl --kubeconfig "$(kubeconfig)" --request-timeout "${KUBE_TIMEOUT:-5s}" "$@"; }
way() { cat "$(cluster_dir)/way" 2>/dev/null || true; }

# node_containers [FORMAT]: list the containers of the cluster's nodes, running or not.
node_containers() {
    local names='{{.Names}}'
    docker ps -a --filter "label=io.x-k8s.kind.cluster=$NAME" --format "${1:-$names}" | LC_ALL=C sort
}

# choose_way: set WAY to `pulled` (official images) if images can be pulled, otherwise to `built` (built here).
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

# kubectl_from_node IMAGE DIR: copy kubectl, which has the cluster's version, out of the node image.
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
        cached "$DBRANCH_CACHE/kubectl-$KUBE_VERSION" "copying kubectl out of the node image" kubectl_from_node "$NODE_IMAGE"
        link_bin kubectl "$DBRANCH_CACHE/kubectl-$KUBE_VERSION/kubectl"
    else
        [[ $(id -u) == 0 ]] || die "building the images from packages needs root"
        build_kubernetes
        need_node_image
        NODE_IMAGE=$(built_node_image)
    fi
}

# maxPods is raised from kubelet's 110 to what a node's 254 addresses allow: the benchmarks run two hundred branches.
kind_config() {
    local number
    printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n'
    printf 'kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  maxPods: 240\n'
    if [[ -n $SMALL_DISK ]]; then
        # kind sets these to 0 %. Images are on the machine's own disk, whose room is not the cluster's.
        printf '  evictionHard: {memory.available: 100Mi, nodefs.available: 10%%, nodefs.inodesFree: 5%%, imagefs.available: 0%%}\n'
        # From kubelet's five minutes: a test waits for it.
        printf '  evictionPressureTransitionPeriod: 10s\n'
    fi
    printf 'nodes:\n- role: control-plane\n'
    if [[ -n $SMALL_DISK ]]; then
        printf '  extraMounts:\n'
        printf '  - {hostPath: "%s", containerPath: "%s"}\n' "$(small_disk)/kubelet" /var/lib/kubelet \
            "$(small_disk)/dbranch" /var/lib/dbranch
    fi
    for ((number = 0; number < WORKERS; number++)); do printf -- '- role: worker\n'; done
}

small_disk() { echo "$(cluster_dir)/disk"; }

# small_disk_up: make and mount the disk of --small-disk. Its loop device goes with the unmount.
small_disk_up() {
    small_disk_down
    truncate -s "$SMALL_DISK" "$(small_disk).img"
    mkfs.ext4 -q -m 0 "$(small_disk).img"
    mkdir -p "$(small_disk)"
    mount -o loop "$(small_disk).img" "$(small_disk)"
    mkdir "$(small_disk)/kubelet" "$(small_disk)/dbranch"
}

small_disk_down() {
    if mountpoint -q "$(small_disk)"; then umount "$(small_disk)"; fi
    rm -f "$(small_disk).img"
}

create_cluster() {
    kind_config | kind create cluster --name "$NAME" --image "$NODE_IMAGE" --kubeconfig "$(kubeconfig)" --wait 180s --config -
}

# cluster_ready SINCE: true if the API server answers, every node is Ready and has renewed its lease since SINCE
# (seconds of the epoch), and the pods of kube-system, CoreDNS among them, are ready.
cluster_ready() {
    local since=$1 nodes expected
    expected=$(node_containers | wc -l)
    kube get --raw /readyz >/dev/null || return 1
    # A dead node stays Ready until its lease expires, so only a lease that was renewed since then counts.
    nodes=$(kube get leases -n kube-node-lease -o 'go-template={{range .items}}{{.spec.renewTime}}{{"\n"}}{{end}}' |
        while read -r renewed; do (($(date -d "$renewed" +%s) >= since)) && echo renewed; done | wc -l)
    ((nodes >= expected)) || return 1
    nodes=$(kube get nodes -o 'go-template={{range .items}}{{range .status.conditions}}{{if eq .type "Ready"}}{{.status}}{{"\n"}}{{end}}{{end}}{{end}}' | grep -cx True)
    ((nodes == expected)) || return 1
    [[ -z $(kube get pods -n kube-system --no-headers | awk '{split($2, n, "/"); if (n[1] != n[2]) print}') ]] || return 1
    kube get serviceaccount default -n default >/dev/null
}

wait_cluster_ready() {
    local since=$1 limit=$2 began=$SECONDS
    until cluster_ready "$since"; do
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
    add_unreachable_routes
    if [[ -n $SMALL_DISK ]]; then step "making a disk of $SMALL_DISK" small_disk_up; fi
    step "creating the kind cluster $NAME with $((WORKERS + 1)) node(s)" create_cluster
    step "waiting until every node is Ready" wait_cluster_ready "$began" 180
    chmod 600 "$(kubeconfig)"
    echo "$NODE_IMAGE" >"$(cluster_dir)/made"
}

start_nodes() { node_containers | xargs docker start; }

# repair_cluster: start the nodes of a cluster whose engine or machine was stopped.
repair_cluster() {
    local stopped began
    began=$(date +%s)
    stopped=$(node_containers '{{.Names}} {{.State}}' | grep -cv ' running$' || true)
    if ((stopped == 0)) && KUBE_TIMEOUT=3s cluster_ready $((began - 60)) 2>/dev/null; then
        say "the cluster $NAME is up"
        add_unreachable_routes
        return 0
    fi
    say "the cluster $NAME exists but is not ready ($stopped node(s) stopped): repairing it"
    add_unreachable_routes
    step "starting the nodes of $NAME" start_nodes || return 1
    step "waiting until every node is Ready" wait_cluster_ready "$began" 120
}

kind_up() {
    local nodes
    need_command flock util-linux
    engine_up
    nodes=$(node_containers | wc -l)
    if ((nodes > 0)) && [[ -f $(cluster_dir)/made && -f $(kubeconfig) ]]; then
        if [[ -n $WORKERS ]] && ((nodes != WORKERS + 1)); then
            die "the cluster $NAME has $nodes node(s), not $((WORKERS + 1)); remove it first: hack/cluster down --name $NAME"
        fi
        WAY=$(way) NODE_IMAGE=$(cat "$(cluster_dir)/made") WORKERS=$((nodes - 1))
        if [[ -x $BIN_DIR/kind && -x $BIN_DIR/kubectl && -x $BIN_DIR/helm ]] && repair_cluster; then return 0; fi
        say "the cluster $NAME could not be repaired: creating it again"
    elif ((nodes > 0)); then
        say "the cluster $NAME was created only in part: creating it again"
    fi
    WORKERS=${WORKERS:-0}
    choose_way
    need_parts
    make_cluster
}

# node_loops: print lines "device inode" of the loop devices whose image is in a volume of a node, or on its small disk.
# Loop devices belong to the machine and outlive the node.
node_loops() {
    local volume name inode device back
    losetup -l -n -O NAME,BACK-INO,BACK-MAJ:MIN 2>/dev/null | while read -r name inode device; do
        for volume in $(if mountpoint -q "$(small_disk)"; then small_disk; fi; node_containers | xargs -r docker inspect -f '{{range .Mounts}}{{if eq .Type "volume"}}{{.Source}}{{"\n"}}{{end}}{{end}}'); do
            # losetup prints major:minor, stat the combined number.
            back=$(stat -c '%d' "$volume")
            [[ ${device// /} == "$(((back >> 8) & 0xfff)):$(((back & 0xff) | ((back >> 12) & 0xfff00)))" ]] || continue
            if [[ -n $(find "$volume" -xdev -inum "$inode" -print -quit) ]]; then
                echo "$name $inode"
                break
            fi
        done
    done
}

# detach_loops: detach the loop devices in lines "device inode" of standard input, if they still have that inode.
detach_loops() {
    local name inode
    while read -r name inode; do
        [[ -n $name && $(losetup -n -O BACK-INO "$name" 2>/dev/null | tr -d ' ') == "$inode" ]] || continue
        say "detaching $name, left attached by $NAME"
        losetup -d "$name" || true
    done
}

# orphaned_loops: print lines "device inode" of the loop devices of pools whose image is deleted. pytest-kind removes
# nodes together with their volumes; once no node is left, these devices have no owner.
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
        # Only a running engine can remove containers and volumes.
        engine_up
    fi
    if [[ -n $(node_containers) ]]; then remove_cluster; else say "the cluster $NAME has no nodes"; fi
    small_disk_down
    rm -rf "$(cluster_dir)"
    others=$(docker ps -aq --filter label=io.x-k8s.kind.cluster | wc -l)
    if ((others == 0)); then
        if [[ $(id -u) == 0 ]]; then detach_loops <<<"$(orphaned_loops)"; fi
        remove_unreachable_routes
        if [[ -f $STATE_DIR/kind_network ]]; then
            docker network rm kind >/dev/null 2>&1 || true
            rm -f "$STATE_DIR/kind_network"
        fi
        engine_down
    fi
}

kind_status() {
    say "kind cluster $NAME, images: $(way)"
    if ! docker_ok; then
        say "no Docker engine answers"
        return 1
    fi
    if [[ -z $(node_containers) ]]; then
        say "the cluster has no nodes"
        return 1
    fi
    node_containers '{{.Names}}: {{.Status}}, {{.Image}}'
    kube get nodes -o wide
    cluster_ready $(($(date +%s) - 60))
}
