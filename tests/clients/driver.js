// node-postgres through the proxy. Arguments: host, port, user, password, file of the trusted certificate or "".
'use strict';
const assert = require('node:assert');
const fs = require('node:fs');
const { pipeline } = require('node:stream/promises');
const { Readable } = require('node:stream');
const { Client, Query } = require('pg');
const copy = require('pg-copy-streams');

const [host, port, user, password, certificate] = process.argv.slice(2);
const words = { host, port: Number(port), user, password, database: 'postgres' };
if (certificate) words.ssl = { ca: fs.readFileSync(certificate, 'utf8'), servername: 'shop' };

async function main() {
  const client = new Client(words);
  await client.connect();
  assert.equal((await client.query('SHOW cluster_name')).rows[0].cluster_name, 'main');
  for (let i = 0; i < 50; i++) {
    const found = await client.query({ name: 'plus', text: 'SELECT $1::int + 1 AS n', values: [i] });
    assert.equal(found.rows[0].n, i + 1);
  }
  await client.query('CREATE TEMP TABLE t (a int, b text)');
  const lines = Array.from({ length: 5000 }, (_, i) => `${i}\t${'x'.repeat(i % 90)}\n`);
  await pipeline(Readable.from(lines), client.query(copy.from('COPY t FROM STDIN')));
  let back = '';
  for await (const part of client.query(copy.to('COPY (SELECT * FROM t ORDER BY a) TO STDOUT'))) back += part;
  assert.equal(back, lines.join(''));
  const heard = new Promise((resolve) => client.once('notification', (n) => resolve(n.payload)));
  await client.query('LISTEN news');
  await client.query("SELECT pg_notify('news', 'out')");
  assert.equal(await heard, 'out');

  // A cancel is a connection of its own, with the key of this one.
  const sleep = new Query('SELECT pg_sleep(60)');
  const ended = new Promise((resolve) => sleep.once('error', (error) => resolve(error.code)));
  client.query(sleep);
  await new Promise((resolve) => setTimeout(resolve, 500));
  new Client(words).cancel(client, sleep);
  assert.equal(await ended, '57014');

  const named = new Client({ ...words, options: '-c dbranch.branch=feature-x' });
  await named.connect();
  assert.equal((await named.query('SHOW cluster_name')).rows[0].cluster_name, 'feature-x');
  await named.end();
  await client.end();
  console.log('ok');
}

main().catch((error) => { console.error(error); process.exit(1); });
