# shellcheck shell=bash
# Build kind's node image from Debian packages, Go modules and the files in kind's own Go module.

NODE_PACKAGES=systemd,systemd-sysv,dbus,containerd,runc,containernetworking-plugins,conntrack,ebtables,ethtool
NODE_PACKAGES+=,iproute2,iptables,nftables,kmod,libseccomp2,mount,pigz,procps,hostname,socat,jq,gettext-base
NODE_PACKAGES+=,ca-certificates,e2fsprogs,udev,inetutils-ping

node_key() {
    key_of "$KIND_VERSION" "$(basename "$(kube_dir)")" "$COREDNS_VERSION" \
        "$(basename "$(rootfs_dir "$NODE_SUITE" "$NODE_PACKAGES")")" "$(base_key)" \
        "$HACK"/kind/{node,kube,program}.Dockerfile "$HACK/kind/default-cni.yaml" "$HACK/kind/pod-routes" \
        "$HACK/kind/refuse-services.service" "$(declare -f build_program_images bake_images build_node_image)"
}

built_node_image() { echo "dbranch-node:$KUBE_VERSION-$(node_key)"; }

kind_module() { go mod download -json "sigs.k8s.io/kind@$KIND_VERSION" | jq -r .Dir; }

# build_program_images WORK: build images of Kubernetes' programs under the names that kubeadm expects; save them as
# WORK/images.tar.
build_program_images() {
    local work=$1 image
    local images context="$work/programs"
    mkdir "$context"
    cp "$(kube_dir)"/{kube,pause} "$(coredns_dir)/coredns" "$HACK/kind/pod-routes" "$context/"
    docker_build dbranch-kube:build "" "$context" -f "$HACK/kind/kube.Dockerfile" --build-arg "BASE=$BUILT_BASE_IMAGE"
    docker_build dbranch-pause:build "" "$context" -f "$HACK/kind/program.Dockerfile" --build-arg PROGRAM=pause
    docker_build dbranch-coredns:build "" "$context" -f "$HACK/kind/program.Dockerfile" --build-arg PROGRAM=coredns
    mapfile -t images <"$work/images"
    for image in "${images[@]}"; do
        case $image in
        */pause:*) docker tag dbranch-pause:build "$image" ;;
        */coredns:*) docker tag dbranch-coredns:build "$image" ;;
        *) docker tag dbranch-kube:build "$image" ;;
        esac
    done
    docker save -o "$work/images.tar" "${images[@]}"
    docker image rm "${images[@]}" dbranch-{pause,coredns,kube}:build >/dev/null
}

# bake_images WORK NAME KEY: import the images with containerd in a container of the node image, then commit that.
bake_images() {
    local work=$1 name=$2 key=$3 container
    container=$(docker create --privileged --label dbranch.key=bake --entrypoint sh dbranch-node:unbaked -ec '
        containerd >/tmp/containerd.log 2>&1 & pid=$!
        for i in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
        ctr -n k8s.io images import --no-unpack /images.tar
        ctr -n k8s.io images ls -q
        kill $pid
        wait $pid || true
        rm /tmp/containerd.log /images.tar')
    docker cp "$work/images.tar" "$container:/images.tar"
    docker start -a "$container"
    docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change 'CMD []' \
        --change "LABEL dbranch.key=$key" "$container" "$name"
    docker rm -fv "$container" >/dev/null
}

build_node_image() {
    local name=$1 key=$2 work context module
    work=$(mktemp -d "$DBRANCH_CACHE/node-work.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    # Remove the container of an earlier build that was killed.
    docker ps -aq --filter label=dbranch.key=bake | xargs -r docker rm -fv
    ln -s "$(kube_dir)/kube" "$work/kubeadm"
    "$work/kubeadm" config images list --kubernetes-version "$KUBE_VERSION" >"$work/images"
    build_program_images "$work"

    context="$work/node"
    mkdir "$context"
    module=$(kind_module)
    cp -r "$module/images/base/files" "$context/files"
    chmod -R u+w "$context/files"
    cp "$(kube_dir)/kube" "$HACK/kind/refuse-services.service" "$context/"
    sed "s/@KUBE_VERSION@/$KUBE_VERSION/" "$HACK/kind/default-cni.yaml" >"$context/default-cni.yaml"
    docker import "$(rootfs_dir "$NODE_SUITE" "$NODE_PACKAGES")/rootfs.tar" dbranch-node:rootfs
    docker_build dbranch-node:unbaked "" "$context" -f "$HACK/kind/node.Dockerfile" --build-arg BASE=dbranch-node:rootfs \
        --build-arg "KUBE_VERSION=$KUBE_VERSION" --build-arg "PAUSE_IMAGE=$(grep /pause: "$work/images")"
    bake_images "$work" "$name" "$key"
    docker image rm dbranch-node:unbaked dbranch-node:rootfs >/dev/null
}

need_node_image() {
    local name key
    name=$(built_node_image) key=$(node_key)
    if [[ $(image_key "$name") == "$key" ]]; then return 0; fi
    if ! intact "$(image_dir "$name" "$key")"; then
        need_base_image
        make_rootfs "$NODE_SUITE" "$NODE_PACKAGES"
        go_env
    fi
    need_image "$name" "$key" build_node_image
}
