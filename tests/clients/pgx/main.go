// pgx through the proxy. Arguments: host, port, user, password, file of the trusted certificate or "".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func check(err error, subject string) {
	if err != nil {
		fmt.Fprintln(os.Stderr, subject+":", err)
		os.Exit(1)
	}
}

func same[T comparable](got, want T, subject string) {
	if got != want {
		check(fmt.Errorf("%v, not %v", got, want), subject)
	}
}

func open(ctx context.Context, url string) *pgx.Conn {
	conn, err := pgx.Connect(ctx, url)
	check(err, "connect")
	return conn
}

func nameOf(ctx context.Context, conn *pgx.Conn) string {
	var name string
	check(conn.QueryRow(ctx, "SHOW cluster_name").Scan(&name), "cluster_name")
	return name
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := os.Args[1:]
	url := fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=postgres", args[0], args[1], args[2], args[3])
	if args[4] == "" {
		url += " sslmode=disable"
	} else {
		url += " sslmode=verify-ca sslrootcert=" + args[4]
	}
	conn := open(ctx, url)
	same(nameOf(ctx, conn), "main", "the active branch")
	for i := 0; i < 50; i++ {
		var n int
		check(conn.QueryRow(ctx, "SELECT $1::int + 1", i).Scan(&n), "a prepared statement")
		same(n, i+1, "a prepared statement")
	}

	// A batch is sent as a whole before its answers are read.
	batch := &pgx.Batch{}
	for i := 0; i < 1000; i++ {
		batch.Queue("SELECT $1::int", i)
	}
	results := conn.SendBatch(ctx, batch)
	for i := 0; i < 1000; i++ {
		var n int
		check(results.QueryRow().Scan(&n), "a batch")
		same(n, i, "a batch")
	}
	check(results.Close(), "a batch")

	_, err := conn.Exec(ctx, "CREATE TEMP TABLE t (a int, b text)")
	check(err, "a table")
	rows := make([][]any, 5000)
	for i := range rows {
		rows[i] = []any{i, strings.Repeat("x", i%90)}
	}
	count, err := conn.CopyFrom(ctx, pgx.Identifier{"t"}, []string{"a", "b"}, pgx.CopyFromRows(rows))
	check(err, "COPY in")
	same(count, 5000, "COPY in")
	tag, err := conn.PgConn().CopyTo(ctx, io.Discard, "COPY t TO STDOUT")
	check(err, "COPY out")
	same(tag.RowsAffected(), 5000, "COPY out")

	_, err = conn.Exec(ctx, "LISTEN events")
	check(err, "LISTEN")
	_, err = conn.Exec(ctx, "SELECT pg_notify('events', 'out')")
	check(err, "NOTIFY")
	notification, err := conn.WaitForNotification(ctx)
	check(err, "a notification")
	same(notification.Payload, "out", "a notification")

	go func() {
		time.Sleep(500 * time.Millisecond)
		check(conn.PgConn().CancelRequest(ctx), "a cancel")
	}()
	_, err = conn.Exec(ctx, "SELECT pg_sleep(60)")
	var pgError *pgconn.PgError
	if !errors.As(err, &pgError) || pgError.Code != "57014" {
		check(fmt.Errorf("%v, not 57014", err), "a cancel")
	}
	same(nameOf(ctx, conn), "main", "still on the active branch")
	check(conn.Close(ctx), "close")

	named := open(ctx, url+" options='-c dbranch.branch=feature-x'")
	same(nameOf(ctx, named), "feature-x", "a named branch")
	check(named.Close(ctx), "close")
	fmt.Println("ok")
}
