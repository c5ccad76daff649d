# PID 1 of a slot's pod: waits until the agent binds a branch to /slot/data, then becomes its Postgres.
# It never exits on a failed check, since kubelet would back off before the next start. POSIX sh; coreutils and flock.
set -u
trap 'exit 0' TERM INT QUIT
d=/slot/data p=/slot/data/pgdata last=
# The image's major version, read while no branch waits for it.
me=$(id -u) want=$(postgres -V | sed 's/[^0-9]*\([0-9]*\).*/\1/')
say() { [ "$1" = "$last" ] || { last=$1; echo "slot: $1" >&2; }; }
nap() { sleep "$1" & wait $!; }
blocked() { say "start blocked by: $1"; echo "$1" >/slot/run/start-blocked-by; nap 1; }
while :; do
  # The agent sees by it that what it mounts reaches the pod.
  : >/slot/run/seen
  # The agent opens and closes `wake` after a bind; the time limit is for a wake-up that was missed.
  [ -e $d/marker.json ] || { say "no branch"; echo "no branch" >/slot/run/start-blocked-by; timeout 2 cat /slot/wake >/dev/null 2>&1 & wait $!; continue; }
  [ "$(stat -f -c %t $d)" = 9123683e ] || { blocked "data is not btrfs"; continue; }
  [ "$(stat -c %i:%u $d)" = 256:0 ] || { blocked "data is not a root-owned subvolume"; continue; }
  [ "$(stat -c %d $d)" != "$(stat -c %d /slot)" ] || { blocked "data is not a mount"; continue; }
  own=$(stat -c %u:%a $p 2>/dev/null)
  [ "$own" = "$me:700" ] || { blocked "pgdata is ${own:-missing}, not $me:700"; continue; }
  have=$(cat $p/PG_VERSION)
  [ "$have" = "$want" ] || { blocked "data is of PostgreSQL $have, image is $want"; continue; }
  # Postgres inherits the lock: a second one on this data never starts, also from another pod.
  # A redirection of `exec` that fails would end the shell.
  [ -r $d/lock ] || { blocked "no lock file"; continue; }
  exec 9<$d/lock
  flock -n 9 || { exec 9<&-; blocked "another container holds the lock"; continue; }
  [ "$(stat -L -c %d:%i /proc/self/fd/9)" = "$(stat -c %d:%i $d/lock)" ] && [ -e $d/marker.json ] && break
  exec 9<&-
done
port=$(cat $d/port)
rm -f /slot/run/.s.PGSQL.* /slot/run/start-blocked-by
# A client in this pod that names no host (psql, dblink, postgres_fdw) goes by PGHOST to the socket of libpq's port. A
# PGPORT would also hold for one that names another host.
ln -s ".s.PGSQL.$port" /slot/run/.s.PGSQL.5432
set --
if ! grep -q '^ "role": "root"' $d/marker.json || grep -q '^ "quiet": true' $d/marker.json; then
  # A copy must not continue its source's subscriptions, even if a superuser creates them again, nor run its jobs.
  # Nor must what is prepared for the root, while the root's own data is in use.
  # The settings file, which the tenant cannot write, lists the libraries that are not loaded.
  off=$(sed -n 's/^# Not loaded in a copy: //p' $d/postgresql.conf)
  kept='' left=''
  for lib in $(postgres -C shared_preload_libraries -D $p -c config_file=$d/postgresql.conf | tr -d '"' | tr , ' '); do
    name=${lib##*/}
    case " $off " in *" ${name%.so} "*) left=1 ;; *) kept=$kept${kept:+,}$lib ;; esac
  done
  set -- -c max_logical_replication_workers=0
  [ -z "$left" ] || set -- "$@" -c shared_preload_libraries="$kept"
  workers=$(sed -n 's/^# Set in a copy: //p' $d/postgresql.conf)
  [ -z "$workers" ] || set -- "$@" -c "$workers"
fi
# Without as many as its source ran with, Postgres does not start: the snapshot may hold prepared transactions.
least=$(sed -n 's/^# At least: max_prepared_transactions=//p' $d/postgresql.conf)
if [ -n "$least" ]; then
  set_to=$(postgres -C max_prepared_transactions -D $p -c config_file=$d/postgresql.conf 2>/dev/null)
  [ "${set_to:-0}" -ge "$least" ] || set -- "$@" -c max_prepared_transactions="$least"
fi
# With a signal file, which a superuser can create, Postgres would start as a standby and wait for ever.
rm -f $p/standby.signal $p/recovery.signal
say starting
exec postgres -D $p -c data_directory=$p \
  -c config_file=$d/postgresql.conf -c hba_file=$d/pg_hba.conf -c ident_file=$d/pg_ident.conf \
  -c listen_addresses='*' -c port="$port" -c unix_socket_directories=/slot/run \
  -c fsync=on -c full_page_writes=on -c data_sync_retry=off -c recovery_init_sync_method=syncfs \
  -c archive_mode=off -c primary_conninfo= -c restore_command= -c synchronous_standby_names= \
  -c logging_collector=off -c log_destination=stderr "$@"
