// A page of another origin in headless Chromium: connects by WebSocket, joins, reacts, and posts with fetch, which asks by
// CORS preflight first.
//
// Environment: CHAT_URL, JWT_SECRET, CHAT_API_KEY, CHROMIUM (the program); NODE_PATH names where playwright-core is installed.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { createServer } from 'node:http';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const { chromium } = createRequire(`${process.env.NODE_PATH}/`)('playwright-core');
const DEADLINE_MS = 20_000;

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

function token(claims) {
  const body = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
  return `${body}.${createHmac('sha256', process.env.JWT_SECRET).update(body).digest('base64url')}`;
}

// Runs in the page. Gives everything that arrived and was answered.
async function pageScript({ url, token, subprotocol, idempotencyKey }) {
  const socket = subprotocol
    ? new WebSocket(`${url.replace('http', 'ws')}/ws`, ['sizland.v1', `bearer.${token}`])
    : new WebSocket(`${url.replace('http', 'ws')}/ws?token=${token}`);
  const messages = [];
  let wake = () => {};
  socket.onmessage = (event) => {
    messages.push(JSON.parse(event.data));
    wake();
  };
  const closed = new Promise((resolve) => {
    socket.onclose = (event) => {
      wake();
      resolve([event.code, event.wasClean]);
    };
  });
  const arrived = async (type) => {
    while (!messages.some((message) => message.type === type)) {
      if (socket.readyState > 1) throw new Error(`closed before ${type}`);
      await new Promise((resolve) => (wake = resolve));
    }
  };
  const roomId = 'browser room/1';
  await arrived('connected');
  socket.send(JSON.stringify({ type: 'join_room', roomId }));
  await arrived('online_update');
  socket.send(JSON.stringify({ type: 'reaction', roomId, messageId: 'm-1', emoji: '🎉' }));
  await arrived('reaction');
  const path = `${url}/api/chat/rooms/${encodeURIComponent(roomId)}/messages`;
  const post = (headers) =>
    fetch(path, { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify({ content: 'from a page' }) });
  const answer = await post({ Authorization: `Bearer ${token}`, 'Idempotency-Key': idempotencyKey });
  const created = [answer.status, await answer.json()];
  const refused = await post({});
  const error = [refused.status, (await refused.json()).code];
  await arrived('new_message');
  const protocol = socket.protocol;
  socket.send(JSON.stringify({ type: 'ping' }));
  await arrived('pong');
  socket.close(1000, 'done');
  return { messages, created, error, protocol, closed: await closed };
}

function serveEmptyPage() {
  const server = createServer((_, response) => response.setHeader('content-type', 'text/html').end('<!doctype html><title>page</title>'));
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server)));
}

function assertConversation(seen, user, protocol) {
  assert.deepEqual(
    seen.messages.map((message) => message.type),
    ['connected', 'user_joined', 'online_update', 'reaction', 'new_message', 'pong'],
  );
  const [connected, joined, online, reaction, message] = seen.messages;
  assert.equal(connected.userId, user);
  assert.equal(joined.userId, user);
  assert.deepEqual(online.online, [user]);
  assert.deepEqual([reaction.messageId, reaction.emoji, reaction.userId], ['m-1', '🎉', user]);
  assert.deepEqual([message.content, message.sender_user_id], ['from a page', user]);
  assert.deepEqual([seen.created[0], seen.created[1].id], [201, message.id]);
  assert.equal(seen.error[0], 401, 'an error can be read across origins too');
  assert.equal(typeof seen.error[1], 'string');
  assert.equal(seen.protocol, protocol);
  assert.deepEqual(seen.closed, [1000, true]);
}

const profile = await mkdtemp(join(tmpdir(), 'chat-browser-'));
const site = await serveEmptyPage();
const flags = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage',
];
let context;
try {
  context = await chromium.launchPersistentContext(profile, { executablePath: process.env.CHROMIUM, headless: true, args: flags });
  for (const subprotocol of [false, true]) {
    const user = subprotocol ? 'page-2' : 'page-1';
    const page = await context.newPage();
    page.setDefaultTimeout(DEADLINE_MS);
    const preflights = [];
    page.on('request', (request) => request.method() === 'OPTIONS' && preflights.push(request.url()));
    await page.goto(`http://127.0.0.1:${site.address().port}/`);
    const run = page.evaluate(pageScript, { url: process.env.CHAT_URL, token: token({ userId: user }), subprotocol, idempotencyKey: user });
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error('the page did not finish in time')), DEADLINE_MS);
    });
    const seen = await Promise.race([run, late]).finally(() => clearTimeout(timer));
    assertConversation(seen, user, subprotocol ? 'sizland.v1' : '');
    await page.close();
  }
} finally {
  await context?.close();
  site.close();
  await rm(profile, { recursive: true, force: true });
}
console.log('browser: a page of another origin connected, joined, reacted and posted');
