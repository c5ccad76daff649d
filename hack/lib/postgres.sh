# shellcheck shell=bash
# Servers of the supported major versions of Postgres for the node tests, installed into the cache by npm from the lock
# file in tests/postgres.

# postgres_servers [long]: install the oldest and the newest one, with `long` those between them, too; set
# DBRANCH_POSTGRES to the directory that holds them, as node_modules/postgres<major>/native/bin.
postgres_servers() {
  local sources="$HACK/../tests/postgres" kind=${1:-short}
  need_command node nodejs npm npm
  local dir
  dir="$DBRANCH_CACHE/postgres-$kind-$(key_of "$sources/package-lock.json")"
  cached "$dir" "installing the supported major versions of Postgres" build_postgres_servers "$kind"
  export DBRANCH_POSTGRES="$dir"
}

build_postgres_servers() {
  local kind=$1 dir=$2 omit=()
  if [[ $kind == short ]]; then omit=(--omit=optional); fi
  cp "$HACK/../tests/postgres/package.json" "$HACK/../tests/postgres/package-lock.json" "$dir" &&
    (cd "$dir" && npm ci --no-audit --no-fund "${omit[@]}")
}
