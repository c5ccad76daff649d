# Stands in for the official image where that cannot be pulled: same user, same PATH.
ARG BASE
FROM ${BASE}
ARG MAJOR
RUN set -eu; \
    groupadd -r -g 999 postgres; \
    useradd -r -u 999 -g 999 -d /var/lib/postgresql -s /bin/bash postgres; \
    apt-get update -qq; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get install -y -qq --no-install-recommends locales; \
    localedef -i en_US -c -f UTF-8 -A /usr/share/locale/locale.alias en_US.UTF-8; \
    apt-get install -y -qq --no-install-recommends postgresql-common-dev- "postgresql-$MAJOR"; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/lib/postgresql/"$MAJOR" /etc/postgresql/* \
      "/usr/lib/postgresql/$MAJOR/lib/bitcode" /usr/share/i18n
ENV LANG=en_US.utf8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/${MAJOR}/bin
CMD ["postgres"]
