// A full conversation with Node's `ws`, the library of the seed's own server: every message of the seed contract, both ways.
//
// Environment: CHAT_URL (http://host:port), JWT_SECRET, CHAT_API_KEY; NODE_PATH names where `ws` is installed.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { createRequire } from 'node:module';

const WebSocket = createRequire(`${process.env.NODE_PATH}/`)('ws');
const url = process.env.CHAT_URL;
const DEADLINE_MS = 10_000;

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

function token(claims) {
  const body = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ exp: Math.floor(Date.now() / 1000) + 600, ...claims })}`;
  return `${body}.${createHmac('sha256', process.env.JWT_SECRET).update(body).digest('base64url')}`;
}

// Messages are queued as they come and taken one by one.
class Client {
  constructor(socket) {
    this.socket = socket;
    this.queue = [];
    this.waiting = null;
    this.closed = new Promise((resolve) => socket.on('close', (code, reason) => resolve([code, reason.toString()])));
    socket.on('message', (data, isBinary) => {
      assert.equal(isBinary, false);
      const message = JSON.parse(data.toString());
      if (this.waiting) this.waiting(message);
      else this.queue.push(message);
    });
    socket.on('error', (error) => {
      throw error;
    });
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  async next() {
    if (this.queue.length > 0) return this.queue.shift();
    const message = new Promise((resolve) => {
      this.waiting = (message) => {
        this.waiting = null;
        resolve(message);
      };
    });
    const ended = this.closed.then((close) => {
      throw new Error(`closed instead of a message: ${close}`);
    });
    return within('a message', Promise.race([message, ended]));
  }

  async expect(type) {
    const message = await this.next();
    assert.equal(message.type, type, JSON.stringify(message));
    return message;
  }
}

function within(what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${DEADLINE_MS} ms: ${what}`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function dial(path, protocols) {
  return new Client(new WebSocket(url.replace('http', 'ws') + path, protocols));
}

async function connect(user) {
  const client = dial(`/ws?token=${token({ userId: user })}`);
  const connected = await client.expect('connected');
  assert.equal(connected.userId, user);
  assert.equal(typeof connected.timestamp, 'number');
  return client;
}

function post(path, body, headers = { 'x-api-key': process.env.CHAT_API_KEY }) {
  return fetch(url + path, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) });
}

async function conversation() {
  const roomId = 'room-123';
  const ana = await connect('ana');
  ana.send({ type: 'join_room', roomId });
  assert.equal((await ana.expect('user_joined')).userId, 'ana');
  assert.deepEqual((await ana.expect('online_update')).online, ['ana']);

  const ben = await connect('ben');
  ben.send({ type: 'join_room', roomId });
  assert.equal((await ben.expect('user_joined')).userId, 'ben');
  assert.deepEqual((await ben.expect('online_update')).online.sort(), ['ana', 'ben']);
  assert.equal((await ana.expect('user_joined')).userId, 'ben');

  ana.send({ type: 'typing_start', roomId });
  assert.equal((await ben.expect('typing_start')).userId, 'ana');
  ana.send({ type: 'typing_stop', roomId });
  assert.equal((await ben.expect('typing_stop')).userId, 'ana');

  ben.send({ type: 'reaction', roomId, messageId: 'm-1', emoji: '👍' });
  for (const client of [ana, ben]) {
    const reaction = await client.expect('reaction');
    assert.deepEqual([reaction.roomId, reaction.messageId, reaction.emoji, reaction.userId], [roomId, 'm-1', '👍', 'ben']);
  }

  const message = {
    id: 'm-2', content: 'Grüße 👋', attachments: [], reactions: [], reply_to: null, edited: false,
    timestamp: Date.now(), sender_user_id: 'ana', messageType: 'text',
  };
  const answer = await post(`/api/chat/rooms/${roomId}/messages`, message);
  assert.equal(answer.status, 201);
  const created = await answer.json();
  assert.deepEqual([created.id, created.timestamp], [message.id, message.timestamp]);
  for (const client of [ana, ben]) {
    const { type, seq, roomId: room, ...rest } = await client.expect('new_message');
    assert.deepEqual([type, room, typeof seq], ['new_message', roomId, 'number']);
    assert.deepEqual(rest, message);
  }

  ana.send({ type: 'dance' });
  assert.equal((await ana.expect('error')).code, 'unknown_type');
  ana.send({ type: 'ping', ref: 1 });
  assert.equal((await ana.expect('pong')).ref, 1);
  await within('a pong frame', new Promise((resolve) => {
    ana.socket.once('pong', resolve);
    ana.socket.ping('x');
  }));

  ben.send({ type: 'leave_room', roomId });
  assert.equal((await ana.expect('user_left')).userId, 'ben');
  ben.send({ type: 'join_room', roomId });
  await ben.expect('user_joined');
  await ben.expect('online_update');
  await ana.expect('user_joined');

  ben.socket.close(1000, 'bye');
  assert.deepEqual((await within('the close', ben.closed))[0], 1000);
  assert.equal((await ana.expect('user_left')).userId, 'ben');
  ana.socket.terminate();
}

async function refusals() {
  for (const [path, reason] of [['/ws', 'No authentication token'], ['/ws?token=nonsense', 'Invalid token']]) {
    assert.deepEqual(await within('the close', dial(path).closed), [1008, reason]);
  }
}

async function subprotocols() {
  const byProtocol = dial('/ws', ['sizland.v1', `bearer.${token({ userId: 'eva' })}`]);
  assert.equal((await byProtocol.expect('connected')).userId, 'eva');
  assert.equal(byProtocol.socket.protocol, 'sizland.v1');
  byProtocol.socket.terminate();
  const byMessage = dial('/ws', ['sizland.v1']);
  await within('the upgrade', new Promise((resolve) => byMessage.socket.once('open', resolve)));
  byMessage.send({ type: 'auth', token: token({ userId: 'eva' }) });
  assert.equal((await byMessage.expect('connected')).userId, 'eva');
  byMessage.socket.terminate();
}

async function large() {
  const client = await connect('large');
  client.send({ type: 'join_room', roomId: 'large' });
  await client.expect('user_joined');
  await client.expect('online_update');
  const content = 'é'.repeat(25_000);
  assert.equal((await post('/api/chat/rooms/large/messages', { content })).status, 201);
  assert.equal((await client.expect('new_message')).content, content);
  client.socket.terminate();
}

// `ws` offers permessage-deflate by default, and compresses what it sends above 1 KiB.
async function compressed() {
  const client = await connect('compressed');
  assert.match(client.socket.extensions, /permessage-deflate/);
  client.send({ type: 'join_room', roomId: 'compressed' });
  await client.expect('user_joined');
  await client.expect('online_update');
  const content = 'the same words again and again, '.repeat(500);
  const received = () => client.socket._socket.bytesRead;
  const before = received();
  assert.equal((await post('/api/chat/rooms/compressed/messages', { content })).status, 201);
  assert.equal((await client.expect('new_message')).content, content);
  assert.ok(received() - before < content.length / 10, `${received() - before} bytes for ${content.length}`);
  const sent = client.socket._socket.bytesWritten;
  client.send({ type: 'ping', ref: 2, more: content });
  assert.equal((await client.expect('pong')).ref, 2);
  assert.ok(client.socket._socket.bytesWritten - sent < content.length / 10);
  client.socket.terminate();
}

await conversation();
await refusals();
await subprotocols();
await large();
await compressed();
console.log('Node ws: a full conversation held');
