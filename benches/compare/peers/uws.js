// The uWebSockets.js server of the comparison: the contract on that library's
// native publish/subscribe, which collects what is published in one turn of
// its loop and sends it to each subscriber at once. Tokens are verified by
// `jsonwebtoken`, as in the `ws` server.
'use strict';

const crypto = require('crypto');
const jwt = require('jsonwebtoken');

// The binary is loaded by its path, because the package's own entry point
// falls back silently to a slow JavaScript version when it cannot be loaded.
const { platform, arch, versions } = process;
const uWS = require(`@trufflesuite/uws-js-unofficial/binaries/uws_${platform}_${arch}_${versions.modules}.node`);

const { PORT, JWT_SECRET, CHAT_API_KEY, CHAT_TLS_CERT, CHAT_TLS_KEY } = process.env;

const roomUsers = new Map(); // roomId -> Set of userIds
const app = CHAT_TLS_CERT
  ? uWS.SSLApp({ cert_file_name: CHAT_TLS_CERT, key_file_name: CHAT_TLS_KEY })
  : uWS.App();

function publish(roomId, message) {
  app.publish(roomId, JSON.stringify(message));
}

function handleMessage(ws, user, message) {
  const { type, roomId } = message;
  const { userId } = user;

  switch (type) {
    case 'join_room':
      joinRoom(ws, user, roomId);
      break;
    case 'leave_room':
      if (user.rooms?.has(roomId)) {
        user.rooms.delete(roomId);
        ws.unsubscribe(roomId);
        leaveRoom(userId, roomId);
      }
      break;
    case 'typing_start':
    case 'typing_stop':
      // A publish of the socket itself reaches everybody but that socket.
      ws.publish(roomId, JSON.stringify({ type, roomId, userId, timestamp: Date.now() }));
      break;
    case 'reaction':
      publish(roomId, {
        type,
        roomId,
        messageId: message.messageId,
        emoji: message.emoji,
        userId,
        timestamp: Date.now(),
      });
      break;
    default:
      console.log('Unknown message type:', type);
  }
}

function joinRoom(ws, user, roomId) {
  let users = roomUsers.get(roomId);
  if (!users) {
    users = new Set();
    roomUsers.set(roomId, users);
  }
  users.add(user.userId);
  (user.rooms ??= new Set()).add(roomId);
  ws.subscribe(roomId);

  publish(roomId, { type: 'user_joined', roomId, userId: user.userId, timestamp: Date.now() });
  // A send first drains what was published to this socket, so the order holds.
  ws.send(JSON.stringify({ type: 'online_update', roomId, online: Array.from(users), timestamp: Date.now() }));
}

function leaveRoom(userId, roomId) {
  roomUsers.get(roomId)?.delete(userId);
  publish(roomId, { type: 'user_left', roomId, userId, timestamp: Date.now() });
}

app.ws('/ws', {
  compression: uWS.DISABLED,
  idleTimeout: 60,
  maxPayloadLength: 64 * 1024,
  // The default of 64 KiB drops messages in a storm of joins.
  maxBackpressure: 64 * 1024 * 1024,
  sendPingsAutomatically: true,

  upgrade: (res, req, context) => {
    const token = new URLSearchParams(req.getQuery()).get('token');
    const user = { userId: undefined, refusal: undefined, rooms: undefined };
    if (!token) {
      user.refusal = 'No authentication token';
    } else {
      try {
        const decoded = jwt.verify(token, JWT_SECRET);
        user.userId = decoded.userId ?? decoded.sub;
      } catch (error) {
        user.refusal = 'Invalid token';
      }
    }
    res.upgrade(
      { user },
      req.getHeader('sec-websocket-key'),
      req.getHeader('sec-websocket-protocol'),
      req.getHeader('sec-websocket-extensions'),
      context,
    );
  },

  open: (ws) => {
    const { user } = ws.getUserData();
    if (user.refusal) {
      ws.end(1008, user.refusal);
      return;
    }
    ws.send(JSON.stringify({ type: 'connected', userId: user.userId, timestamp: Date.now() }));
  },

  message: (ws, data) => {
    try {
      handleMessage(ws, ws.getUserData().user, JSON.parse(Buffer.from(data).toString()));
    } catch (error) {
      console.error('Error parsing WebSocket message:', error);
    }
  },

  close: (ws) => {
    const { user } = ws.getUserData();
    for (const roomId of user.rooms ?? []) {
      leaveRoom(user.userId, roomId);
    }
  },
});

app.post('/api/chat/rooms/:roomId/messages', (res, req) => {
  const roomId = decodeURIComponent(req.getParameter(0));
  if (req.getHeader('x-api-key') !== CHAT_API_KEY) {
    res.writeStatus('401 Unauthorized').end('{"error":"Unauthorized"}');
    return;
  }
  res.onAborted(() => {
    res.aborted = true;
  });
  let head;
  res.onData((chunk, isLast) => {
    if (!isLast) {
      // A chunk is only valid during the call, so it is copied to be kept.
      head = Buffer.concat([head ?? Buffer.alloc(0), Buffer.from(chunk)]);
      return;
    }
    const body = head ? Buffer.concat([head, Buffer.from(chunk)]) : Buffer.from(chunk);
    if (!res.aborted) {
      postMessage(res, roomId, body);
    }
  });
});

function postMessage(res, roomId, body) {
  let message;
  try {
    message = { id: crypto.randomUUID(), timestamp: Date.now(), ...JSON.parse(body.toString()) };
  } catch (error) {
    res.writeStatus('400 Bad Request').end('{"error":"Bad JSON"}');
    return;
  }
  publish(roomId, { type: 'new_message', roomId, ...message });
  res.cork(() => {
    res
      .writeStatus('201 Created')
      .writeHeader('content-type', 'application/json')
      .end(JSON.stringify({ id: message.id, timestamp: message.timestamp }));
  });
}

app.listen('127.0.0.1', Number(PORT), (listening) => {
  if (!listening) {
    console.error(`cannot listen on port ${PORT}`);
    process.exit(1);
  }
  console.log(`uws listening on port ${PORT}`);
});
