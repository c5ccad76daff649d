# shellcheck shell=bash disable=SC2153
# The audit log of the API server of a cluster that hack/cluster created: for measures, which read it from the log of
# the API server's pod. It is off unless it is asked for.

# A directory that the API server's pod mounts anyway.
AUDIT_POLICY=/etc/kubernetes/pki/audit-policy.yaml
API_SERVER_MANIFEST=/etc/kubernetes/manifests/kube-apiserver.yaml

# Watches last for minutes and are no requests of an operation; leases and events of nodes are none of its cost.
audit_policy() {
    cat <<EOF
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- level: None
  verbs: [watch]
- level: None
  nonResourceURLs: ['*']
- level: None
  resources: [{group: coordination.k8s.io}]
- level: Metadata
EOF
}

control_plane() { node_containers | grep -- "-control-plane$"; }

api_server_start() { kube get --raw /metrics | sed -n 's/^process_start_time_seconds //p'; }

# api_server_restarted BEFORE: true if the API server that answers has another start time, and the cluster is ready.
api_server_restarted() {
    local now
    now=$(api_server_start) && [[ -n $now && $now != "$1" ]] && cluster_ready $(($(date +%s) - 60))
}

wait_api_server() {
    local began=$SECONDS
    until api_server_restarted "$1" 2>/dev/null; do
        ((SECONDS - began < 180)) || { kube get pods -A; return 1; }
        sleep 1
    done
}

# audit_status: print whether the audit log is on or off.
audit_status() {
    docker exec "$(control_plane)" sh -c "grep -q -- --audit-log-path $API_SERVER_MANIFEST && echo on || echo off"
}

# set_audit on|off: edit the manifest of the API server in one rename, and wait until kubelet has started it again.
set_audit() {
    local node before present options=''
    node=$(control_plane)
    present=$(audit_status)
    if [[ $present == "$1" ]]; then
        say "the audit log of $NAME is $1"
        return 0
    fi
    if [[ $1 == on ]]; then
        audit_policy | docker exec -i "$node" sh -c "cat >$AUDIT_POLICY"
        options="; s|^    - kube-apiserver\$|&\\n    - --audit-policy-file=$AUDIT_POLICY\\n    - --audit-log-path=-|"
    fi
    before=$(KUBE_TIMEOUT=60s api_server_start)
    # kubelet reads every file of the directory of manifests: the new one is written beside it.
    docker exec "$node" sh -c "sed '/- --audit-/d$options' $API_SERVER_MANIFEST >/etc/kubernetes/api-server.new &&
        chmod 600 /etc/kubernetes/api-server.new && mv /etc/kubernetes/api-server.new $API_SERVER_MANIFEST"
    step "turning the audit log of $NAME $1" wait_api_server "$before"
}
