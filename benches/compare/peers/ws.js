// The Node `ws` server of the comparison: the code of the guide that the
// contract comes from, with its REST route. It differs from the guide in three
// ways, none of which costs it time: the lines logged per connection are left
// out (they would measure the terminal), the API key is checked, and where the
// guide calls a database the message is taken as it was posted.
'use strict';

const crypto = require('crypto');
const http = require('http');
const express = require('express');
const jwt = require('jsonwebtoken');
const WebSocket = require('ws');

const { PORT, JWT_SECRET, CHAT_API_KEY } = process.env;

const app = express();
const server = http.createServer(app);
const wss = new WebSocket.Server({ server, path: '/ws' });

const connections = new Map(); // userId -> WebSocket
const roomUsers = new Map(); // roomId -> Set of userIds

wss.on('connection', (ws, req) => {
  const url = new URL(req.url, `http://${req.headers.host}`);
  const token = url.searchParams.get('token');

  if (!token) {
    ws.close(1008, 'No authentication token');
    return;
  }

  try {
    const decoded = jwt.verify(token, JWT_SECRET);
    const userId = decoded.userId ?? decoded.sub;

    connections.set(userId, ws);
    ws.userId = userId;
    ws.isAlive = true;

    ws.send(JSON.stringify({ type: 'connected', userId, timestamp: Date.now() }));
  } catch (error) {
    ws.close(1008, 'Invalid token');
    return;
  }

  ws.on('message', (data) => {
    try {
      handleWebSocketMessage(ws, JSON.parse(data.toString()));
    } catch (error) {
      console.error('Error parsing WebSocket message:', error);
    }
  });

  ws.on('pong', () => {
    ws.isAlive = true;
  });

  ws.on('close', () => {
    connections.delete(ws.userId);
    for (const [roomId, users] of roomUsers.entries()) {
      if (users.has(ws.userId)) {
        users.delete(ws.userId);
        broadcastToRoom(roomId, { type: 'user_left', roomId, userId: ws.userId, timestamp: Date.now() });
      }
    }
  });

  ws.on('error', (error) => {
    console.error('WebSocket error:', error);
  });
});

function handleWebSocketMessage(ws, message) {
  const { type, roomId, ...data } = message;

  switch (type) {
    case 'join_room':
      joinRoom(ws, roomId);
      break;
    case 'leave_room':
      leaveRoom(ws, roomId);
      break;
    case 'typing_start':
    case 'typing_stop':
      broadcastToRoom(roomId, { type, roomId, userId: ws.userId, timestamp: Date.now() }, ws.userId);
      break;
    case 'reaction':
      handleReaction(ws, roomId, data);
      break;
    default:
      console.log('Unknown message type:', type);
  }
}

function joinRoom(ws, roomId) {
  if (!roomUsers.has(roomId)) {
    roomUsers.set(roomId, new Set());
  }
  roomUsers.get(roomId).add(ws.userId);

  broadcastToRoom(roomId, { type: 'user_joined', roomId, userId: ws.userId, timestamp: Date.now() });

  const onlineUsers = Array.from(roomUsers.get(roomId));
  ws.send(JSON.stringify({ type: 'online_update', roomId, online: onlineUsers, timestamp: Date.now() }));
}

function leaveRoom(ws, roomId) {
  if (roomUsers.has(roomId)) {
    roomUsers.get(roomId).delete(ws.userId);
    broadcastToRoom(roomId, { type: 'user_left', roomId, userId: ws.userId, timestamp: Date.now() });
  }
}

function handleReaction(ws, roomId, data) {
  broadcastToRoom(roomId, {
    type: 'reaction',
    roomId,
    messageId: data.messageId,
    emoji: data.emoji,
    userId: ws.userId,
    timestamp: Date.now(),
  });
}

function broadcastToRoom(roomId, message, excludeUserId = null) {
  if (!roomUsers.has(roomId)) return;

  const users = roomUsers.get(roomId);
  users.forEach((userId) => {
    if (userId !== excludeUserId && connections.has(userId)) {
      const ws = connections.get(userId);
      if (ws.readyState === WebSocket.OPEN) {
        ws.send(JSON.stringify(message));
      }
    }
  });
}

function broadcastNewMessage(roomId, messageData) {
  broadcastToRoom(roomId, { type: 'new_message', roomId, ...messageData });
}

app.use(express.json());

app.post('/api/chat/rooms/:roomId/messages', (req, res) => {
  if (req.get('X-API-Key') !== CHAT_API_KEY) {
    res.status(401).json({ error: 'Unauthorized' });
    return;
  }
  const message = { id: crypto.randomUUID(), timestamp: Date.now(), ...req.body };

  broadcastNewMessage(req.params.roomId, {
    id: message.id,
    content: message.content,
    attachments: message.attachments,
    reactions: message.reactions,
    reply_to: message.reply_to,
    edited: message.edited,
    timestamp: message.timestamp,
    sender_user_id: message.sender_user_id,
    messageType: message.messageType,
  });

  res.status(201).json({ id: message.id, timestamp: message.timestamp });
});

const interval = setInterval(() => {
  connections.forEach((ws, userId) => {
    if (ws.isAlive === false) {
      connections.delete(userId);
      return ws.terminate();
    }
    ws.isAlive = false;
    ws.ping();
  });
}, 30000);

process.on('SIGTERM', () => {
  clearInterval(interval);
  server.close(() => process.exit(0));
});

server.listen(Number(PORT), '127.0.0.1', () => {
  console.log(`ws listening on port ${PORT}`);
});
