# shellcheck shell=bash
# A cluster that exists: named by its kubeconfig and context, never made or removed here.

given_up() {
    local config=${KUBECONFIG_GIVEN:-${KUBECONFIG:-$HOME/.kube/config}} context=() name
    command -v kubectl >/dev/null || die "kubectl is missing; install it, it is needed for a cluster of your own"
    [[ -z $CONTEXT_GIVEN ]] || context=(--context "$CONTEXT_GIVEN")
    say "way 1: the cluster of ${KUBECONFIG_GIVEN:-the default kubeconfig}${CONTEXT_GIVEN:+, context $CONTEXT_GIVEN}"
    mkdir -p "$(cluster_dir)"
    KUBECONFIG=$config kubectl "${context[@]}" config view --raw --minify --flatten >"$(kubeconfig).new"
    chmod 600 "$(kubeconfig).new"
    mv "$(kubeconfig).new" "$(kubeconfig)"
    kube version >/dev/null || die "the cluster does not answer"
    echo given >"$(cluster_dir)/way"
    name=$(kubectl --kubeconfig "$(kubeconfig)" config current-context)
    say "the cluster of context $name is up; images reach it from a registry of yours: see hack/images --help"
}

given_status() {
    say "a cluster of your own: $(kubectl --kubeconfig "$(kubeconfig)" config current-context)"
    kube get nodes -o wide
}

given_down() {
    rm -rf "$(cluster_dir)"
    say "forgotten; the cluster itself is not touched"
}
