// The OpenID Connect provider of the tests: oidc-provider, certified, with accounts that sign in without a page.
// Usage: node provider.mjs MODULES CONFIG, where MODULES is a node_modules folder and CONFIG is JSON.
// POST /control {account, tamper, rotate} changes how it behaves; it prints "ready ISSUER" when it listens.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [modules, given] = process.argv.slice(2);
const config = JSON.parse(given);
const { resolve } = createRequire(`${modules}/of-the-tests.cjs`);
const load = (name) => import(pathToFileURL(resolve(name)).href);
const { default: Provider } = await load('oidc-provider');
const jose = await load('jose');

const control = { account: null, tamper: null, requests: [] };
let provider;
let privateKey;
let serial = 0;

async function newProvider(issuer) {
  const kid = `key-${++serial}`;
  const { privateKey: made } = await jose.generateKeyPair('RS256', { extractable: true });
  privateKey = { ...(await jose.exportJWK(made)), kid, use: 'sig', alg: 'RS256' };
  provider = new Provider(issuer, {
    clients: config.clients,
    jwks: { keys: [privateKey] },
    cookies: { keys: ['of the tests'] },
    conformIdTokenClaims: config.userinfoOnly ?? false,
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
    scopes: ['openid', 'email', 'profile'],
    features: { devInteractions: { enabled: false } },
    pkce: { required: () => true },
    interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
    async findAccount(_ctx, id) {
      return { accountId: id, claims: async () => ({ ...control.account, sub: id }) };
    },
  });
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.path === '/token' && ctx.body?.id_token && control.tamper) {
      ctx.body = { ...ctx.body, id_token: await tampered(ctx.body.id_token, control.tamper) };
    }
  });
}

// Returns another ID token: other claims, another header, or another key, but otherwise as a valid one.
async function tampered(token, { claims = {}, remove = [], header = {}, key = 'own' }) {
  const payload = { ...jose.decodeJwt(token), ...claims };
  for (const name of remove) delete payload[name];
  const head = { ...jose.decodeProtectedHeader(token), ...header };
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  if (head.alg === 'none') return `${encode(head)}.${encode(payload)}.`;
  if (key === 'broken') return `${token.slice(0, -8)}AAAAAAAA`;
  const bytes = (text) => new TextEncoder().encode(text);
  let signing = privateKey;
  if (key === 'foreign') signing = (await jose.generateKeyPair('RS256')).privateKey;
  if (key === 'secret') signing = bytes(config.clients[0].client_secret.padEnd(32, '-'));
  // The attack on verifiers that take the public key for a shared secret.
  if (key === 'public') {
    const { n, e, kty } = privateKey;
    signing = bytes(await jose.exportSPKI(await jose.importJWK({ n, e, kty }, 'RS256', { extractable: true })));
  }
  if (signing.kty) signing = await jose.importJWK(signing, head.alg);
  return new jose.SignJWT(payload).setProtectedHeader(head).sign(signing);
}

async function signIn(request, response) {
  const { params } = await provider.interactionDetails(request, response);
  if (!control.account) {
    const error = { error: 'access_denied', error_description: '<b>no account</b>' };
    return provider.interactionFinished(request, response, error, { mergeWithLastSubmission: false });
  }
  const accountId = control.account.sub;
  const grant = new provider.Grant({ accountId, clientId: params.client_id });
  grant.addOIDCScope('openid email profile');
  const result = { login: { accountId, remember: false }, consent: { grantId: await grant.save() } };
  return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
}

async function controlled(request, response, issuer) {
  let body = '';
  for await (const chunk of request) body += chunk;
  const { rotate, ...changes } = JSON.parse(body);
  Object.assign(control, changes);
  if (rotate) await newProvider(issuer);
  response.end(JSON.stringify({ requests: control.requests }));
}

const server = createServer((request, response) => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const path = request.url.split('?')[0];
  control.requests.push(path);
  if (path === '/control') return controlled(request, response, issuer);
  if (path.startsWith('/interaction/')) return signIn(request, response);
  return provider.callback()(request, response);
});
server.listen(0, '127.0.0.1', async () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  await newProvider(issuer);
  console.log(`ready ${issuer}`);
});
// It ends with the tests, however they end.
process.stdin.resume().on('end', () => process.exit(0));
