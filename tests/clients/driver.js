// node-postgres through the proxy. Arguments: host, port, user, password, file of the trusted certificate or "".
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const { pipeline } = require('node:stream/promises');
const { Readable } = require('node:stream');
const { Client, Query } = require('pg');
const copy = require('pg-copy-streams');

const [host, port, user, password, certificate] = process.argv.slice(2);
const settings = { host, port: Number(port), user, password, database: 'postgres' };
if (certificate) settings.ssl = { ca: fs.readFileSync(certificate, 'utf8'), servername: 'shop' };

async function main() {
  const client = new Client(settings);
  await client.connect();
  assert.equal((await client.query('SHOW cluster_name')).rows[0].cluster_name, 'main');
  for (let i = 0; i < 50; i++) {
    const result = await client.query({ name: 'plus', text: 'SELECT $1::int + 1 AS n', values: [i] });
    assert.equal(result.rows[0].n, i + 1);
  }
  await client.query('CREATE TEMP TABLE t (a int, b text)');
  const lines = Array.from({ length: 5000 }, (_, i) => `${i}\t${'x'.repeat(i % 90)}\n`);
  await pipeline(Readable.from(lines), client.query(copy.from('COPY t FROM STDIN')));
  let copied = '';
  for await (const part of client.query(copy.to('COPY (SELECT * FROM t ORDER BY a) TO STDOUT'))) copied += part;
  assert.equal(copied, lines.join(''));
  const notification = new Promise((resolve) => client.once('notification', (n) => resolve(n.payload)));
  await client.query('LISTEN events');
  await client.query("SELECT pg_notify('events', 'out')");
  assert.equal(await notification, 'out');

  // A cancel request is a connection of its own that carries the key of the session.
  const sleep = new Query('SELECT pg_sleep(60)');
  const canceled = new Promise((resolve) => sleep.once('error', (error) => resolve(error.code)));
  client.query(sleep);
  await new Promise((resolve) => setTimeout(resolve, 500));
  new Client(settings).cancel(client, sleep);
  assert.equal(await canceled, '57014');

  const named = new Client({ ...settings, options: '-c dbranch.branch=feature-x' });
  await named.connect();
  assert.equal((await named.query('SHOW cluster_name')).rows[0].cluster_name, 'feature-x');
  await named.end();
  await client.end();
  console.log('ok');
}

main().catch((error) => { console.error(error); process.exit(1); });
