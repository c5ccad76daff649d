import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

/** JDBC through the proxy. Arguments: host, port, user, password, file of the trusted certificate or "". */
public class Driver {
  static void check(boolean holds, String subject) {
    if (!holds) throw new AssertionError(subject);
  }

  static Connection connect(String[] args, String... options) throws SQLException {
    Properties properties = new Properties();
    properties.setProperty("user", args[2]);
    properties.setProperty("password", args[3]);
    properties.setProperty("sslmode", args[4].isEmpty() ? "disable" : "verify-ca");
    if (!args[4].isEmpty()) properties.setProperty("sslrootcert", args[4]);
    for (int i = 0; i < options.length; i += 2) properties.setProperty(options[i], options[i + 1]);
    return DriverManager.getConnection("jdbc:postgresql://" + args[0] + ":" + args[1] + "/postgres", properties);
  }

  static String branch(Connection connection) throws SQLException {
    try (Statement s = connection.createStatement(); ResultSet r = s.executeQuery("SHOW cluster_name")) {
      r.next();
      return r.getString(1);
    }
  }

  public static void main(String[] args) throws Exception {
    try (Connection c = connect(args, "reWriteBatchedInserts", "true")) {
      check(branch(c).equals("main"), "the active branch");
      try (PreparedStatement s = c.prepareStatement("SELECT ?::int + 1")) {
        for (int i = 0; i < 50; i++) {
          s.setInt(1, i);
          try (ResultSet r = s.executeQuery()) {
            check(r.next() && r.getInt(1) == i + 1, "a prepared statement");
          }
        }
      }
      c.setAutoCommit(false);
      try (Statement s = c.createStatement()) {
        s.execute("CREATE TEMP TABLE t (a int, b text)");
      }
      try (PreparedStatement s = c.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
        for (int i = 0; i < 5000; i++) {
          s.setInt(1, i);
          s.setString(2, "x".repeat(i % 90));
          s.addBatch();
        }
        s.executeBatch();
      }
      try (Statement s = c.createStatement()) {
        s.setFetchSize(100);
        long sum = 0;
        try (ResultSet r = s.executeQuery("SELECT a FROM t")) {
          while (r.next()) sum += r.getInt(1);
        }
        check(sum == 4999L * 5000 / 2, "a cursor");
      }
      PGConnection pg = c.unwrap(PGConnection.class);
      StringWriter out = new StringWriter();
      pg.getCopyAPI().copyOut("COPY (SELECT * FROM t ORDER BY a) TO STDOUT", out);
      long rows = pg.getCopyAPI().copyIn("COPY t FROM STDIN", new StringReader(out.toString()));
      check(rows == 5000, "COPY");
      LargeObjectManager objects = pg.getLargeObjectAPI();
      long oid = objects.createLO();
      LargeObject object = objects.open(oid);
      object.write(new byte[1_000_000]);
      check(object.size64() == 1_000_000, "a large object");
      object.close();
      objects.delete(oid);
      c.commit();
      c.setAutoCommit(true);
      try (Statement s = c.createStatement()) {
        s.execute("LISTEN events");
        s.execute("SELECT pg_notify('events', 'out')");
        check(pg.getNotifications(5000)[0].getParameter().equals("out"), "a notification");
        s.setQueryTimeout(1);
        try {
          s.execute("SELECT pg_sleep(60)");
          check(false, "a query time-out sends a cancel request");
        } catch (SQLException e) {
          check("57014".equals(e.getSQLState()), e.toString());
        }
      }
      check(branch(c).equals("main"), "still on the active branch");
    }
    try (Connection c = connect(args, "options", "-c dbranch.branch=feature-x")) {
      check(branch(c).equals("feature-x"), "a named branch");
    }
    System.out.println("ok");
  }
}
