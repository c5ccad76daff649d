# shellcheck shell=bash
# Drivers of other languages and a Postgres 18 for the tests in tests/clients, installed into the cache by the
# languages' package managers from the lock files there.

JDBC_VERSION=42.7.8
JDBC_SHA256=2a32a9dcbc42d67a50ad3a0de5efd102c8d2be46720045f2cbd6689f160ab7c7
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy

# client_programs: install the drivers; set DBRANCH_CLIENTS to the directory with pgx, postgresql.jar and
# node_modules.
client_programs() {
  local dir
  need_command java default-jdk-headless mvn maven node nodejs npm npm
  go_env
  dir="$DBRANCH_CACHE/clients-$(key_of "$HACK/../tests/clients/pgx" "$HACK/../tests/clients/package-lock.json" "$JDBC_SHA256")"
  cached "$dir" "installing the drivers of other languages" build_clients
  export DBRANCH_CLIENTS="$dir"
}

build_clients() {
  local dir=$1
  (cd "$HACK/../tests/clients/pgx" && go build -mod=readonly -o "$dir/pgx" .) &&
    mvn -q -B "$MAVEN_COPY" -Dartifact="org.postgresql:postgresql:$JDBC_VERSION" -DoutputDirectory="$dir" &&
    mv "$dir/postgresql-$JDBC_VERSION.jar" "$dir/postgresql.jar" &&
    printf '%s  %s\n' "$JDBC_SHA256" "$dir/postgresql.jar" | sha256sum --check --quiet &&
    cp "$HACK/../tests/clients/package.json" "$HACK/../tests/clients/package-lock.json" "$dir" &&
    (cd "$dir" && npm ci --no-audit --no-fund)
}
