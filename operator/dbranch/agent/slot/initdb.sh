# The one-shot pod of a new project: creates the database in the area that the agent bound to /slot/data.
# Its last output is the pod's termination message. POSIX sh and coreutils.
set -eu
trap 'exit 1' TERM INT QUIT
d=/slot/data p=/slot/data/pgdata
until [ "$(stat -f -c %t $d)" = 9123683e ] && [ "$(stat -c %u $p 2>/dev/null)" = "$(id -u)" ]; do
  timeout 2 cat /slot/wake >/dev/null 2>&1 & wait $! || :
done
major=$(postgres -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')
# The builtin locale provider sorts the same with every C library.
if [ "$major" -ge 17 ]; then
  set -- --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C.UTF-8
else
  set -- --locale=C.UTF-8
fi
initdb -D $p -k --encoding=UTF8 --username="$DBRANCH_USER" --pwfile=/verifier/verifier --auth=scram-sha-256 "$@"
if [ "$DBRANCH_DATABASE" != postgres ]; then
  printf 'create database "%s"\n' "$DBRANCH_DATABASE" | postgres --single -D $p postgres
fi
sync -f $p
touch $p/dbranch_initdb_done
