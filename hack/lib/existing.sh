# shellcheck shell=bash
# An existing cluster, named by its kubeconfig and context. It is never created or removed here.

existing_up() {
    local config=${KUBECONFIG_ARG:-${KUBECONFIG:-$HOME/.kube/config}} context=() name
    command -v kubectl >/dev/null || die "kubectl is missing; install it: an existing cluster needs it"
    [[ -z $CONTEXT_ARG ]] || context=(--context "$CONTEXT_ARG")
    say "way 1: the cluster of ${KUBECONFIG_ARG:-the default kubeconfig}${CONTEXT_ARG:+, context $CONTEXT_ARG}"
    mkdir -p "$(cluster_dir)"
    KUBECONFIG=$config kubectl "${context[@]}" config view --raw --minify --flatten >"$(kubeconfig).new"
    chmod 600 "$(kubeconfig).new"
    mv "$(kubeconfig).new" "$(kubeconfig)"
    kube version >/dev/null || die "the cluster does not answer"
    echo existing >"$(cluster_dir)/way"
    name=$(kubectl --kubeconfig "$(kubeconfig)" config current-context)
    say "the cluster of context $name is up; it pulls images from your registry: see hack/images --help"
}

existing_status() {
    say "an existing cluster: $(kubectl --kubeconfig "$(kubeconfig)" config current-context)"
    kube get nodes -o wide
}

existing_down() {
    rm -rf "$(cluster_dir)"
    say "removed its kubeconfig from the cache; the cluster itself is unchanged"
}
