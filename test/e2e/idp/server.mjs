// The identity provider of the end-to-end tests: oidc-provider, which is certified by
// the OpenID Foundation, with everything in memory. Whoever signs in is asked for a
// name only. It prints the address of its issuer in one line of JSON, and takes orders
// from the tests at /test/.
import http from 'node:http';
import crypto from 'node:crypto';
import { Provider } from 'oidc-provider';

const people = new Map(); // by name: {email, email_verified, groups}
let keys = [newKey()];
let provider;

function newKey() {
  const { privateKey } = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: crypto.randomUUID(), alg: 'RS256', use: 'sig' };
}

// Adapter keeps the provider's state across a rotation of its keys, which takes a new
// Provider.
const store = new Map();
class Adapter {
  constructor(kind) { this.kind = kind; }
  key(id) { return `${this.kind}:${id}`; }
  async upsert(id, payload) { store.set(this.key(id), payload); }
  async find(id) { return store.get(this.key(id)); }
  async findByUid(uid) { return [...store.entries()].find(([k, v]) => k.startsWith(`${this.kind}:`) && v.uid === uid)?.[1]; }
  async findByUserCode(code) { return [...store.entries()].find(([k, v]) => k.startsWith(`${this.kind}:`) && v.userCode === code)?.[1]; }
  async destroy(id) { store.delete(this.key(id)); }
  async consume(id) { const one = store.get(this.key(id)); if (one) one.consumed = Math.floor(Date.now() / 1000); }
  async revokeByGrantId(grant) { for (const [k, v] of store) if (v.grantId === grant) store.delete(k); }
}

function newProvider(issuer) {
  const one = new Provider(issuer, {
    adapter: Adapter,
    jwks: { keys },
    cookies: { keys: ['only for tests'] },
    clients: [{
      client_id: 'postern', application_type: 'native', token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
    }],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    scopes: ['openid', 'offline_access', 'email', 'groups'],
    conformIdTokenClaims: false,
    features: { deviceFlow: { enabled: true }, revocation: { enabled: true }, devInteractions: { enabled: true } },
    pkce: { required: () => true },
    rotateRefreshToken: true,
    ttl: { AccessToken: 300, IdToken: 300, RefreshToken: 86400, DeviceCode: 120, Interaction: 300, Session: 300, Grant: 86400 },
    async findAccount(_, id) {
      const who = people.get(id);
      return who && !who.gone ? { accountId: id, claims: async () => ({ sub: id, ...who }) } : undefined;
    },
  });
  return one;
}

async function orders(req, res) {
  let body = '';
  for await (const part of req) body += part;
  const order = body ? JSON.parse(body) : {};
  switch (req.url) {
    case '/test/person': people.set(order.name, order.claims); break;
    case '/test/rotate': keys = [newKey()]; provider = newProvider(order.issuer); break;
    default: res.statusCode = 404;
  }
  res.end();
}

const server = http.createServer((req, res) => {
  if (req.url.startsWith('/test/')) orders(req, res).catch((err) => { res.statusCode = 500; res.end(String(err)); });
  else provider.callback()(req, res);
});
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  provider = newProvider(issuer);
  console.log(JSON.stringify({ issuer }));
});
process.on('SIGTERM', () => process.exit(0));
