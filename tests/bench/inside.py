"""Runs inside the cluster: reads one JSON object a line, answers with one. Only what the server image holds."""

import json
import sys
import threading
import time

import psycopg


def connect(dsn, seconds):
    """The first session that answers within `seconds`: refusals are tried again at once."""
    end = time.monotonic() + seconds
    tries = 0
    while True:
        tries += 1
        try:
            session = psycopg.connect(dsn, connect_timeout=5, autocommit=True)
            return session, tries
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.002)


def clock(ask):
    return {"at": time.monotonic()}


def first_row(ask):
    """When the first row came back."""
    session, tries = connect(ask["dsn"], ask.get("seconds", 60))
    with session:
        row = session.execute(ask["query"]).fetchone()
        return {"at": time.monotonic(), "tries": tries, "row": str(row[0] if row else None)}


def sql(ask):
    session, _ = connect(ask["dsn"], 60)
    with session:
        began = time.monotonic()
        rows = []
        for query in ask["queries"]:
            cursor = session.execute(query)
            rows = cursor.fetchall() if cursor.description else []
        return {"rows": [[str(cell) for cell in row] for row in rows], "seconds": time.monotonic() - began}


def until_there(ask):
    """New sessions one after another until one sees what is `wanted`: when the last other one began, and this one.

    `pause`: seconds between two of them, so that whoever looks leaves the processor to what is looked at.
    """
    last_old, end = None, time.monotonic() + 60
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            with psycopg.connect(ask["dsn"], connect_timeout=5, autocommit=True) as session:
                row = session.execute(ask["query"]).fetchone()
        except psycopg.Error:
            row = None
        if row and str(row[0]) == ask["wanted"]:
            return {"at": time.monotonic(), "began": began, "last_old": last_old}
        last_old = began if row else last_old
        time.sleep(ask["pause"])
    raise TimeoutError("never there")


class Load:
    """Writers that commit small transactions, each with the longest time that one took."""

    def __init__(self, dsn, writers):
        self.over = threading.Event()
        self.longest = [0.0] * writers
        # When the statement under way began; 0 between two.
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
                while not self.over.is_set():
                    self.began[n] = began = time.monotonic()
                    session.execute("insert into load_of_bench (n, pad) values (%s, repeat('x', 200))", [n])
                    self.longest[n] = max(self.longest[n], time.monotonic() - began)
                    self.began[n] = 0.0
                    self.commits[n] += 1
        except psycopg.Error as error:
            self.errors.append(str(error))


LOADS = {}


def load_start(ask):
    session, _ = connect(ask["dsn"], 60)
    with session:
        session.execute("create table if not exists load_of_bench (n int, pad text)")
    LOADS["one"] = Load(ask["dsn"], ask["writers"])
    return {}


def load_peak(ask):
    """The longest statement since the last time this was asked, those under way among them."""
    load = LOADS["one"]
    waiting = [time.monotonic() - began for began in load.began if began]
    longest = max(load.longest + waiting)
    load.longest = [0.0] * len(load.longest)
    return {"longest": longest, "commits": sum(load.commits), "errors": load.errors}


def load_stop(ask):
    load = LOADS.pop("one")
    load.over.set()
    for thread in load.threads:
        thread.join(10)
    return {"commits": sum(load.commits), "errors": load.errors}


VERBS = {f.__name__: f for f in (clock, first_row, sql, until_there, load_start, load_peak, load_stop)}
for line in sys.stdin:
    asked = json.loads(line)
    try:
        answer = VERBS[asked["verb"]](asked)
    except (psycopg.Error, OSError, KeyError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
