// Install, lock and pack a script's packages from npm's registry; runs in a builder machine, never on a host.
//
// It reads package.json in its folder, and writes layer.tar and report.json there. Unless the image has npm, it fetches
// the newest npm that this Node.js can run from the same registry. Packages may run code while they are installed, which
// is why a machine is used. The user can read all output.

"use strict";
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const https = require("https");
const path = require("path");
const { spawnSync } = require("child_process");

const FOLDER = __dirname;
const MODULES = path.join(FOLDER, "node_modules");
const REGISTRY = (process.env.npm_config_registry || "https://registry.npmjs.org").replace(/\/+$/, "");
const MAX_BYTES = 64 << 20;

class Failure extends Error {}

function fetchBytes(url, headers = {}, redirects = 5) {
  return new Promise((resolve, reject) => {
    const fail = (reason) => reject(new Failure(`cannot fetch ${url}: ${reason}`));
    const request = (url.startsWith("https:") ? https : http).get(url, { headers, timeout: 60000 }, (response) => {
      const { statusCode } = response;
      const { location } = response.headers;
      if (statusCode >= 300 && statusCode < 400 && location && redirects > 0) {
        response.resume();
        resolve(fetchBytes(new URL(location, url).href, headers, redirects - 1));
        return;
      }
      if (statusCode !== 200) return fail(`status ${statusCode}`);
      const chunks = [];
      let size = 0;
      response.on("data", (chunk) => {
        size += chunk.length;
        if (size > MAX_BYTES) request.destroy(new Error("too large"));
        chunks.push(chunk);
      });
      response.on("end", () => resolve(Buffer.concat(chunks)));
      response.on("error", (error) => fail(error.message));
    });
    request.on("timeout", () => request.destroy(new Error("timed out")));
    request.on("error", (error) => fail(error.message));
  });
}

function run(program, args) {
  const { status, error } = spawnSync(program, args, { cwd: FOLDER, stdio: ["ignore", "inherit", "inherit"] });
  if (error) throw new Failure(`${program}: ${error.message}`);
  return status === null ? 1 : status;
}

function imageHasNpm() {
  const { status } = spawnSync("npm", ["--version"], { stdio: "ignore" });
  return status === 0;
}

// The newest release of the newest npm that this Node.js runs.
function npmRelease(versions) {
  const node = Number(process.versions.node.split(".")[0]);
  const major = node >= 18 ? 10 : node >= 16 ? 9 : 6;
  const numbers = (version) => version.split(".").map(Number);
  const compare = ([a, b, c], [x, y, z]) => a - x || b - y || c - z;
  const releases = versions.filter((version) => /^\d+\.\d+\.\d+$/.test(version)).map(numbers);
  const candidates = releases.filter(([first]) => first === major).sort(compare);
  if (candidates.length === 0) throw new Failure(`the registry has no npm ${major}, which Node.js ${node} needs`);
  return candidates.pop().join(".");
}

// The command that starts npm: the image's, or one that is fetched.
async function npmCommand() {
  if (imageHasNpm()) return ["npm"];
  const headers = { Accept: "application/vnd.npm.install-v1+json" };
  const all = JSON.parse((await fetchBytes(`${REGISTRY}/npm`, headers)).toString());
  const release = all.versions[npmRelease(Object.keys(all.versions))];
  const archive = await fetchBytes(release.dist.tarball);
  const digest = `sha512-${crypto.createHash("sha512").update(archive).digest("base64")}`;
  if (!release.dist.integrity.split(" ").includes(digest)) throw new Failure("npm's archive has a wrong digest");
  fs.writeFileSync(path.join(FOLDER, "npm.tgz"), archive);
  fs.mkdirSync(path.join(FOLDER, "npm"));
  if (run("tar", ["-xzf", "npm.tgz", "-C", "npm", "--strip-components=1"]) !== 0) throw new Failure("tar failed");
  return [process.execPath, path.join(FOLDER, "npm", "bin", "npm-cli.js")];
}

function treeBytes(folder) {
  let size = 0;
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name);
    size += entry.isDirectory() ? treeBytes(file) : fs.lstatSync(file).size;
  }
  return size;
}

function report() {
  const text = fs.readFileSync(path.join(FOLDER, "package-lock.json"), "utf8");
  const packages = [];
  for (const [folder, { version }] of Object.entries(JSON.parse(text).packages || {})) {
    const name = folder.split("node_modules/").pop();
    if (name && version) packages.push({ name, version });
  }
  const fields = { path: "/node_modules", at_start: false, packages, text };
  fs.writeFileSync(path.join(FOLDER, "report.json"), JSON.stringify(fields));
}

async function main() {
  const [program, ...args] = await npmCommand();
  const options = ["--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", "--package-lock"];
  const code = run(program, [...args, "install", "--cache", path.join(FOLDER, "cache"), ...options]);
  if (code !== 0) return code;
  fs.mkdirSync(MODULES, { recursive: true });
  const size = treeBytes(MODULES);
  const maxBytes = Number(process.env.MAX_LAYER_BYTES);
  if (size > maxBytes)
    throw new Failure(`the packages take ${size >> 20} MB, over the limit of ${maxBytes >> 20} MB (setting max_layer_mb)`);
  report();
  return run("tar", ["--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf", "layer.tar", "-C", MODULES, "."]);
}

main().then(
  (code) => process.exit(code),
  (error) => {
    console.log(`error: ${error instanceof Failure ? error.message : error.stack}`);
    process.exit(1);
  },
);
