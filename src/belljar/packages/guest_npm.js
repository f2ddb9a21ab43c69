// Runs in a builder machine, never on a host: installs what a script needs from npm's registry, locks and packs it.
//
// Its folder holds package.json; it leaves layer.tar and report.json beside it. npm itself comes from the same registry,
// the newest that this Node.js can run, unless the image has one. Packages may run code of theirs while they are
// installed: that is what the machine is for. All that it prints is the user's to read.

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

function fetched(url, headers = {}, hops = 5) {
  return new Promise((resolve, reject) => {
    const failed = (words) => reject(new Failure(`cannot fetch ${url}: ${words}`));
    const request = (url.startsWith("https:") ? https : http).get(url, { headers, timeout: 60000 }, (response) => {
      const { statusCode } = response;
      const { location } = response.headers;
      if (statusCode >= 300 && statusCode < 400 && location && hops > 0) {
        response.resume();
        resolve(fetched(new URL(location, url).href, headers, hops - 1));
        return;
      }
      if (statusCode !== 200) return failed(`status ${statusCode}`);
      const chunks = [];
      let size = 0;
      response.on("data", (chunk) => {
        size += chunk.length;
        if (size > MAX_BYTES) request.destroy(new Error("too large"));
        chunks.push(chunk);
      });
      response.on("end", () => resolve(Buffer.concat(chunks)));
      response.on("error", (error) => failed(error.message));
    });
    request.on("timeout", () => request.destroy(new Error("no answer")));
    request.on("error", (error) => failed(error.message));
  });
}

function call(program, words) {
  const { status, error } = spawnSync(program, words, { cwd: FOLDER, stdio: ["ignore", "inherit", "inherit"] });
  if (error) throw new Failure(`${program}: ${error.message}`);
  return status === null ? 1 : status;
}

function inImage() {
  const { status } = spawnSync("npm", ["--version"], { stdio: "ignore" });
  return status === 0;
}

// The newest release of the newest npm that this Node.js runs.
function npmRelease(versions) {
  const node = Number(process.versions.node.split(".")[0]);
  const major = node >= 18 ? 10 : node >= 16 ? 9 : 6;
  const numbers = (version) => version.split(".").map(Number);
  const older = ([a, b, c], [x, y, z]) => a - x || b - y || c - z;
  const plain = versions.filter((version) => /^\d+\.\d+\.\d+$/.test(version)).map(numbers);
  const fitting = plain.filter(([first]) => first === major).sort(older);
  if (fitting.length === 0) throw new Failure(`the registry has no npm ${major}, which Node.js ${node} needs`);
  return fitting.pop().join(".");
}

async function npm() {
  if (inImage()) return ["npm"];
  const brief = { Accept: "application/vnd.npm.install-v1+json" };
  const all = JSON.parse((await fetched(`${REGISTRY}/npm`, brief)).toString());
  const about = all.versions[npmRelease(Object.keys(all.versions))];
  const archive = await fetched(about.dist.tarball);
  const digest = `sha512-${crypto.createHash("sha512").update(archive).digest("base64")}`;
  if (!about.dist.integrity.split(" ").includes(digest)) throw new Failure("npm's archive is not what the registry says");
  fs.writeFileSync(path.join(FOLDER, "npm.tgz"), archive);
  fs.mkdirSync(path.join(FOLDER, "npm"));
  if (call("tar", ["-xzf", "npm.tgz", "-C", "npm", "--strip-components=1"]) !== 0) throw new Failure("tar failed");
  return [process.execPath, path.join(FOLDER, "npm", "bin", "npm-cli.js")];
}

function treeBytes(folder) {
  let size = 0;
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const at = path.join(folder, entry.name);
    size += entry.isDirectory() ? treeBytes(at) : fs.lstatSync(at).size;
  }
  return size;
}

function report() {
  const text = fs.readFileSync(path.join(FOLDER, "package-lock.json"), "utf8");
  const packages = [];
  for (const [place, about] of Object.entries(JSON.parse(text).packages || {})) {
    const name = place.split("node_modules/").pop();
    if (name && about.version) packages.push({ name, version: about.version });
  }
  const words = { path: "/node_modules", at_start: false, packages, text };
  fs.writeFileSync(path.join(FOLDER, "report.json"), JSON.stringify(words));
}

async function main() {
  const [program, ...before] = await npm();
  const options = ["--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", "--package-lock"];
  const code = call(program, [...before, "install", "--cache", path.join(FOLDER, "cache"), ...options]);
  if (code !== 0) return code;
  fs.mkdirSync(MODULES, { recursive: true });
  const size = treeBytes(MODULES);
  const most = Number(process.env.MAX_LAYER_BYTES);
  if (size > most)
    throw new Failure(`the packages take ${size >> 20} MB, and ${most >> 20} MB is the most (the setting max_layer_mb)`);
  report();
  return call("tar", ["--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf", "layer.tar", "-C", MODULES, "."]);
}

main().then(
  (code) => process.exit(code),
  (error) => {
    console.log(`error: ${error instanceof Failure ? error.message : error.stack}`);
    process.exit(1);
  },
);
