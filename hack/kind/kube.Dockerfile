# One image for all of Kubernetes' own containers: the binary looks at the name it is called by.
ARG BASE
FROM ${BASE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends conntrack iproute2 iptables kmod nftables \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY kube pod-routes /usr/local/bin/
RUN for name in kubectl etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy; do \
      ln -s kube /usr/local/bin/$name; \
    done
