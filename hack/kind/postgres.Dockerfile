# Stands in for the official image where that cannot be pulled: same user, same programs on PATH. What
# only compiling queries (LLVM) and Debian's own cluster scripts (Perl) need is left out.
ARG BASE
FROM ${BASE}
ARG MAJOR
RUN set -eu; \
    groupadd -r -g 999 postgres; \
    useradd -r -u 999 -g 999 -d /var/lib/postgresql -s /bin/bash postgres; \
    apt-get update -qq; \
    export DEBIAN_FRONTEND=noninteractive; \
    apt-get install -y -qq --no-install-recommends locales "postgresql-$MAJOR"; \
    localedef -i en_US -c -f UTF-8 -A /usr/share/locale/locale.alias en_US.UTF-8; \
    find /usr/bin -lname '*pg_wrapper' -delete; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /var/lib/postgresql/"$MAJOR" /etc/postgresql/* \
      /usr/lib/*/libLLVM* /usr/lib/llvm-* /usr/lib/*/libz3.so* /usr/share/i18n /usr/share/perl /usr/share/perl5 \
      /usr/lib/*/perl /usr/lib/*/perl5 /usr/lib/*/libperl.so* /usr/include \
      "/usr/lib/postgresql/$MAJOR/lib/bitcode" "/usr/lib/postgresql/$MAJOR/lib/llvmjit"* "/usr/lib/postgresql/$MAJOR/lib/pgxs"
ENV LANG=en_US.utf8 PATH=/usr/lib/postgresql/${MAJOR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["postgres"]
