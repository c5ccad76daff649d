"""The client inside the cluster: answer each line of JSON with one. It uses only what the server image has."""

import json
import sys
import threading
import time

import psycopg


def connect(dsn, seconds):
    """Return the first session that opens, and the number of attempts; retry failures at once for `seconds`."""
    deadline = time.monotonic() + seconds
    tries = 0
    while True:
        tries += 1
        try:
            session = psycopg.connect(dsn, connect_timeout=5, autocommit=True)
            return session, tries
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)


def clock(request):
    """Return the time."""
    return {"at": time.monotonic()}


def first_row(request):
    """Connect and run the query; return the time of its first row."""
    session, tries = connect(request["dsn"], request.get("seconds", 60))
    with session:
        row = session.execute(request["query"]).fetchone()
        return {"at": time.monotonic(), "tries": tries, "row": str(row[0] if row else None)}


def sql(request):
    """Run the queries; return the rows of the last one and the seconds of all."""
    session, _ = connect(request["dsn"], 60)
    with session:
        began = time.monotonic()
        rows = []
        for query in request["queries"]:
            cursor = session.execute(query)
            rows = cursor.fetchall() if cursor.description else []
        return {"rows": [[str(cell) for cell in row] for row in rows], "seconds": time.monotonic() - began}


def until_value(request):
    """Open one session after another until one reads the `expected` value; return when it and the last other began.

    `pause`: seconds between two sessions, so that the client does not take the processor from what it measures.
    """
    last_old, deadline = None, time.monotonic() + 60
    while time.monotonic() < deadline:
        began = time.monotonic()
        try:
            with psycopg.connect(request["dsn"], connect_timeout=5, autocommit=True) as session:
                row = session.execute(request["query"]).fetchone()
        except psycopg.Error:
            row = None
        if row and str(row[0]) == request["expected"]:
            return {"at": time.monotonic(), "began": began, "last_old": last_old}
        last_old = began if row else last_old
        time.sleep(request["pause"])
    raise TimeoutError(f"no session read {request['expected']}")


class Load:
    """Threads that commit small transactions; each records the longest duration of one."""

    def __init__(self, dsn, writers):
        self.stop = threading.Event()
        self.longest = [0.0] * writers
        # The start time of the statement in progress; 0 between two.
        self.began = [0.0] * writers
        self.commits = [0] * writers
        self.errors = []
        self.threads = [
            threading.Thread(target=self.write, args=(dsn, n), daemon=True) for n in range(writers)
        ]
        for thread in self.threads:
            thread.start()

    def write(self, dsn, n):
        try:
            with psycopg.connect(dsn, autocommit=True) as session:
                while not self.stop.is_set():
                    self.began[n] = began = time.monotonic()
                    session.execute("insert into load_of_bench (n, pad) values (%s, repeat('x', 200))", [n])
                    self.longest[n] = max(self.longest[n], time.monotonic() - began)
                    self.began[n] = 0.0
                    self.commits[n] += 1
        except psycopg.Error as error:
            self.errors.append(str(error))


LOADS = {}


def load_start(request):
    """Start the writers."""
    session, _ = connect(request["dsn"], 60)
    with session:
        session.execute("create table if not exists load_of_bench (n int, pad text)")
    LOADS["one"] = Load(request["dsn"], request["writers"])
    return {}


def load_peak(request):
    """Return the longest statement since the last request, including those in progress."""
    load = LOADS["one"]
    in_progress = [time.monotonic() - began for began in load.began if began]
    longest = max(load.longest + in_progress)
    load.longest = [0.0] * len(load.longest)
    return {"longest": longest, "commits": sum(load.commits), "errors": load.errors}


def load_stop(request):
    """Stop the writers; return their commits and errors."""
    load = LOADS.pop("one")
    load.stop.set()
    for thread in load.threads:
        thread.join(10)
    return {"commits": sum(load.commits), "errors": load.errors}


VERBS = {f.__name__: f for f in (clock, first_row, sql, until_value, load_start, load_peak, load_stop)}
for line in sys.stdin:
    received = json.loads(line)
    try:
        answer = VERBS[received["verb"]](received)
    except (psycopg.Error, OSError, KeyError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
