# A kind node over Debian's systemd, containerd, runc and CNI plugins, with the files of kind's own
# module. What it does is what kind's own Dockerfile does.
ARG BASE
FROM ${BASE}
COPY files/usr/local/bin/ /usr/local/bin/
COPY files/kind/ /kind/
COPY files/etc/ /etc/
COPY refuse-services.service /etc/systemd/system/
RUN set -eu; units=/lib/systemd/system; \
    chmod 755 /usr/local/bin/* /kind/bin /kind/bin/*; \
    ln -s /usr/bin/containerd /usr/local/bin/containerd; \
    mkdir -p /opt/cni /kind/manifests /etc/kubernetes/manifests; \
    ln -s /usr/lib/cni /opt/cni/bin; \
    rm -f $units/sysinit.target.wants/systemd-tmpfiles-setup.service $units/multi-user.target.wants/* \
      /etc/systemd/system/*.wants/* $units/local-fs.target.wants/* $units/sockets.target.wants/*udev* \
      $units/sockets.target.wants/*initctl* $units/basic.target.wants/*; \
    echo ReadKMsg=no >>/etc/systemd/journald.conf; \
    ln -sf "$(command -v systemd || echo /lib/systemd/systemd)" /sbin/init; \
    systemctl enable kubelet.service containerd.service undo-mount-hacks.service refuse-services.service; \
    systemctl mask systemd-binfmt.service; \
    ctr oci spec | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
      >/etc/containerd/cri-base.json
# Neither containerd nor a pod may ask for a lower oom score than the machine grants.
ARG KUBE_VERSION
ARG PAUSE_IMAGE
RUN set -eu; \
    sed -i "s#^  sandbox_image.*#  sandbox_image = \"$PAUSE_IMAGE\"#; s#restrict_oom_score_adj = false#restrict_oom_score_adj = true#" \
      /etc/containerd/config.toml; \
    sed -i /OOMScoreAdjust/d /etc/systemd/system/containerd.service; \
    echo "$KUBE_VERSION" >/kind/version; \
    for name in kubeadm kubelet kubectl; do ln -s kube /usr/bin/$name; done
COPY default-cni.yaml /kind/manifests/default-cni.yaml
COPY kube /usr/bin/kube
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
