# shellcheck shell=bash disable=SC2034
# Versions of the local cluster's parts. kubelet 1.34 is the newest that supports both cgroup v1 and Debian's
# containerd 1.x; the node image's digest is from the release notes of this version of kind.

KIND_VERSION=v0.30.0
HELM_VERSION=v3.19.2
COREDNS_VERSION=v1.12.4
KUBE_VERSION=v1.34.3
KIND_NODE_IMAGE="kindest/node:$KUBE_VERSION@sha256:08497ee19eace7b4b5348db5c6a1591d7752b164530a36f855cb0f2bdcbadd48"
GO_MINIMUM=1.24.0
NODE_SUITE=bookworm
BASE_SUITE=trixie

PULLED_BASE_IMAGE=debian:trixie-slim
PULLED_POSTGRES_IMAGE=postgres:17
BUILT_BASE_IMAGE=dbranch-debian:trixie
BUILT_POSTGRES_IMAGE=dbranch-postgres:17

# The last release, which upgrades are tested from. RELEASE.md says when these change.
RELEASE=0.1.0
RELEASE_COMMIT=26d1640e4fa64de47b5cb7566ec54ef104c937b2
