# shellcheck shell=bash
# The server image and the Postgres image, and their way into the nodes.

project_version() { sed -n 's/^version *= *"\(.*\)"$/\1/p' "$HACK/../pyproject.toml" | head -1; }

# The tag changes with the contents, so that an upgrade rolls out what was built.
server_key() {
    key_of "$HACK/../operator/dbranch" "$HACK/../operator/Dockerfile" "$HACK/../operator/requirements.lock" \
        "$HACK/../.dockerignore"
}
server_image() { echo "${DBRANCH_IMAGE_PREFIX:-}dbranch-server:$(project_version)-$(server_key)"; }

postgres_image() {
    if [[ $(way) == built ]]; then echo "$BUILT_POSTGRES_IMAGE"; else echo "$PULLED_POSTGRES_IMAGE"; fi
}

print_env() {
    local node_image
    [[ -f $(kubeconfig) ]] || die "there is no cluster $NAME; make it with: hack/cluster up --name $NAME"
    node_image=$(cat "$(cluster_dir)/made" 2>/dev/null || true)
    printf 'export KUBECONFIG=%q\n' "$(kubeconfig)"
    # Only what is not there yet, so that evaluating twice does no harm.
    # shellcheck disable=SC2016
    printf 'case ":$PATH:" in *:%q:*) ;; *) export PATH=%q:"$PATH" ;; esac\n' "$BIN_DIR" "$BIN_DIR"
    if [[ -n ${DOCKER_HOST:-} ]]; then printf 'export DOCKER_HOST=%q\n' "$DOCKER_HOST"; fi
    printf 'export DBRANCH_POSTGRES_IMAGE=%q DBRANCH_SERVER_IMAGE=%q\n' "$(postgres_image)" "$(server_image)"
    printf 'export DBRANCH_KIND_NAME=%q DBRANCH_KIND_BIN=%q DBRANCH_KUBECTL_BIN=%q DBRANCH_KIND_IMAGE=%q\n' \
        "$NAME" "$BIN_DIR/kind" "$BIN_DIR/kubectl" "$node_image"
}
