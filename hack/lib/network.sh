# shellcheck shell=bash
# Until kube-proxy has programmed its rules, a packet for a Service leaves the node and then the machine. An
# unreachable route on the machine makes it fail at once instead.

ROUTES_FILE="$STATE_DIR/routes"
CLUSTER_RANGES=(10.96.0.0/16 10.244.0.0/16)

add_unreachable_routes() {
    local range
    [[ $(id -u) == 0 ]] && command -v ip >/dev/null || return 0
    mkdir -p "$STATE_DIR"
    for range in "${CLUSTER_RANGES[@]}"; do
        # Leave existing routes into the range alone (a VPN, another cluster on this machine).
        [[ -z $(ip -4 route show root "$range") ]] || continue
        ip -4 route add unreachable "$range" && echo "$range" >>"$ROUTES_FILE"
    done
}

remove_unreachable_routes() {
    local range
    [[ -f $ROUTES_FILE ]] || return 0
    while read -r range; do
        ip -4 route del unreachable "$range" 2>/dev/null || true
    done <"$ROUTES_FILE"
    rm -f "$ROUTES_FILE"
}
