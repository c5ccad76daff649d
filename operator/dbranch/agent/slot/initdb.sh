# The one-shot pod of a new project: creates the database in the area that the agent bound to /slot/data.
# Its arguments are spec.postgres.initdb.args. Its last output is the pod's termination message. POSIX sh and coreutils.
set -eu
trap 'exit 1' TERM INT QUIT
d=/slot/data p=/slot/data/pgdata
major=$(postgres -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')
if [ "$major" -lt "$DBRANCH_OLDEST_MAJOR" ] || [ "$major" -gt "$DBRANCH_NEWEST_MAJOR" ]; then
  echo "error: PostgreSQL $major is not supported" >&2
  exit 1
fi
until [ "$(stat -f -c %t $d)" = 9123683e ] && [ "$(stat -c %u $p 2>/dev/null)" = "$(id -u)" ]; do
  timeout 2 cat /slot/wake >/dev/null 2>&1 & wait $! || :
done
provider=${DBRANCH_PROVIDER:-} locale=${DBRANCH_LOCALE:-}
# The builtin locale provider sorts the same with every C library.
[ -n "$provider$locale" ] || [ "$major" -lt 17 ] || provider=builtin
case $provider in
  builtin) set -- --locale-provider=builtin --builtin-locale="${locale:-C.UTF-8}" --locale=C.UTF-8 "$@" ;;
  icu) set -- --locale-provider=icu --icu-locale="${locale:-und}" --locale=C.UTF-8 "$@" ;;
  *)
    set -- --locale="${locale:-C.UTF-8}" "$@"
    [ "$major" -lt 15 ] || set -- --locale-provider=libc "$@" ;;
esac
# Its pg_hba.conf is never used: a branch has one of the agent's.
initdb -D $p -k --encoding="${DBRANCH_ENCODING:-UTF8}" --username=postgres --auth=reject "$@"
sql() { postgres --single -D $p -c exit_on_error=on "$1" >/dev/null; }
user=$DBRANCH_USER database=$DBRANCH_DATABASE
{
  [ ! -e /verifier/superuser ] || printf "alter role postgres password '%s'\n" "$(cat /verifier/superuser)"
  # One that is called postgres is asked for as the superuser.
  [ "$user" = postgres ] || printf 'create role "%s" login createdb\n' "$user"
  printf "alter role \"%s\" password '%s'\n" "$user" "$(cat /verifier/verifier)"
  if [ "$database" = postgres ]; then
    printf 'alter database postgres owner to "%s"\n' "$user"
  else
    printf 'create database "%s" owner "%s"\n' "$database" "$user"
  fi
} | sql postgres
# As it is from 15 on: the schema belongs to the owner of the database.
[ "$major" -ge 15 ] || echo 'alter schema public owner to pg_database_owner' | sql "$database"
sync -f $p
echo postgres >$p/dbranch_initdb_done
