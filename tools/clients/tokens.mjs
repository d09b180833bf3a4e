// Tokens of npm's `jsonwebtoken`, signed with private keys whose public ones the server has.
//
// `tokens.mjs keys DIR` writes DIR/rsa.pem and DIR/p256.pem, for CHAT_JWT_KEYS, and DIR/jwks.json, for CHAT_JWKS, each with
// keys of its own, and the private keys beside them. `tokens.mjs check DIR` has the server at CHAT_URL take what is signed
// with them, and nothing else. NODE_PATH names where `jsonwebtoken` is installed.
import assert from 'node:assert/strict';
import { createPrivateKey, generateKeyPairSync, sign as signWith } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const jwt = createRequire(`${process.env.NODE_PATH}/`)('jsonwebtoken');
const [command, directory] = process.argv.slice(2);
const KINDS = {
  rsa: ['rsa', { modulusLength: 2048 }],
  p256: ['ec', { namedCurve: 'P-256' }],
  p384: ['ec', { namedCurve: 'P-384' }],
  ed25519: ['ed25519'],
};
const ALGORITHMS = {
  rsa: ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'],
  p256: ['ES256'],
  p384: ['ES384'],
  ed25519: ['EdDSA'],
};
const IN_PEM = ['rsa', 'p256'];

function makeKeys() {
  const generate = (kind, name) => {
    const { publicKey, privateKey } = generateKeyPairSync(...KINDS[kind]);
    writeFileSync(`${directory}/${name}.private.pem`, privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
    return publicKey;
  };
  for (const kind of IN_PEM) writeFileSync(`${directory}/${kind}.pem`, generate(kind, kind).export({ type: 'spki', format: 'pem' }));
  const keys = Object.keys(KINDS).map((kind) => ({ ...generate(kind, `set-${kind}`).export({ format: 'jwk' }), kid: `set-${kind}` }));
  writeFileSync(`${directory}/jwks.json`, JSON.stringify({ keys }));
  for (const kind of Object.keys(KINDS)) generate(kind, `unknown-${kind}`);
}

const privateKey = (name) => createPrivateKey(readFileSync(`${directory}/${name}.private.pem`));

// jsonwebtoken does not sign EdDSA: such a token is put together here.
function sign(name, algorithm, keyid) {
  const claims = { userId: 'ana', iat: Math.floor(Date.now() / 1000), exp: Math.floor(Date.now() / 1000) + 600 };
  if (algorithm !== 'EdDSA') return jwt.sign(claims, privateKey(name), { algorithm, ...(keyid && { keyid }) });
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const content = `${encode({ alg: algorithm, typ: 'JWT', kid: keyid })}.${encode(claims)}`;
  return `${content}.${signWith(null, Buffer.from(content), privateKey(name)).toString('base64url')}`;
}

async function status(token) {
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch(`${process.env.CHAT_URL}/api/chat/rooms/room-1/online`, { headers, signal: AbortSignal.timeout(10_000) });
  await answer.arrayBuffer();
  return answer.status;
}

async function checkTokens() {
  let checked = 0;
  for (const [kind, algorithms] of Object.entries(ALGORITHMS)) {
    for (const algorithm of algorithms) {
      const kid = `set-${kind}`;
      assert.equal(await status(sign(kid, algorithm, kid)), 200, `${algorithm}, by the key set`);
      assert.equal(await status(sign(`unknown-${kind}`, algorithm, kid)), 401, `${algorithm}, with another's kid`);
      assert.equal(await status(sign(kid, algorithm, 'nobody')), 401, `${algorithm}, with a kid that there is not`);
      if (IN_PEM.includes(kind)) {
        assert.equal(await status(sign(kind, algorithm)), 200, `${algorithm}, by a PEM file`);
        assert.equal(await status(sign(kind, algorithm, 'anything')), 200, `${algorithm}, by a PEM file, which has no name`);
      }
      assert.equal(await status(sign(`unknown-${kind}`, algorithm)), 401, `${algorithm}, with a key that is not known`);
      checked += 1;
    }
  }
  // A public key is never taken for a secret.
  const forged = jwt.sign({ userId: 'ana' }, 'x'.repeat(32), { algorithm: 'HS256' });
  assert.equal(await status(forged), 401);
  console.log(`tokens of ${checked} algorithms are taken`);
}

if (command === 'keys') makeKeys();
else await checkTokens();
