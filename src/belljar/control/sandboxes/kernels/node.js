// The JavaScript kernel: runs code piece by piece in one global scope of Node.js 18 or later, and tells the host what came
// of it. It is sent to the guest. Requests come on descriptor 3, messages go to descriptor 4, a JSON object in each line.
// Whoever runs code in it can make it send anything.
"use strict";

const fs = require("node:fs");
const inspector = require("node:inspector");
const util = require("node:util");
const vm = require("node:vm");

const [REQUESTS, REPLIES] = [3, 4];
const MAX_BUNDLE = 4 * 1024 * 1024;
const MAX_TEXT = 1024 * 1024;
const MAX_JSON = 64 * 1024;
const MAX_VALUES = 200_000; // of JSON in one representation
const MAX_HELD = 64 * 1024;
const MAX_TRACEBACK = 256 * 1024;
const PIECE = 64 * 1024;
const KERNEL = Symbol.for("belljar.kernel");
globalThis[Symbol.for("belljar.import")] = load;
const DISPLAY = Symbol.for("Jupyter.display");
const METHODS = {
    _toHtml: "text/html", _toMarkdown: "text/markdown", _toSvg: "image/svg+xml", _toPng: "image/png", _toJpeg: "image/jpeg",
};
// What is used behind user code's back, whatever that changes.
const { stringify, parse } = JSON;
const { writeSync } = fs;

// --- messages ----------------------------------------------------------------------------------------------------------

let run = null; // the id of the run that goes on

function send(type, fields) {
    const text = stringify({ type, run, ...fields });
    const ascii = text.replace(/[\u007f-\uffff]/g, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);
    let line = Buffer.from(`${ascii}\n`, "latin1");
    while (line.length) line = line.subarray(writeSync(REPLIES, line));
}

// Pieces of a text, cut at the ends of lines if there are any: the node finds a secret only in one message. And never in
// the middle of a character.
function* piecesOf(text) {
    while (text.length > PIECE) {
        let end = text.lastIndexOf("\n", PIECE - 1) + 1 || PIECE;
        if (/[\ud800-\udbff]/.test(text[end - 1])) end -= 1;
        yield text.slice(0, end);
        text = text.slice(end);
    }
    if (text) yield text;
}

const held = { stdout: "", stderr: "" }; // what was written between two runs

function write(name, chunk, encoding, callback) {
    const done = typeof encoding === "function" ? encoding : callback;
    const text = typeof chunk === "string" ? chunk : Buffer.from(chunk).toString();
    if (run === null) held[name] = (held[name] + text).slice(-MAX_HELD);
    else for (const piece of piecesOf(text)) send(name, { text: piece });
    if (done) process.nextTick(done);
    return true;
}

for (const name of ["stdout", "stderr"]) process[name].write = (...args) => write(name, ...args);

// --- results -----------------------------------------------------------------------------------------------------------

function isPlain(value) {
    if (typeof value !== "object" || value === null) return false;
    const prototype = Object.getPrototypeOf(value);
    return Array.isArray(value) || prototype === Object.prototype || prototype === null;
}

async function bundleOf(value) {
    const bundle = {};
    if ((typeof value === "object" || typeof value === "function") && value !== null) {
        if (typeof value[DISPLAY] === "function") Object.assign(bundle, await value[DISPLAY]());
        if (typeof value._toMime === "function") Object.assign(bundle, await value._toMime());
        for (const [method, mime] of Object.entries(METHODS)) {
            if (!(mime in bundle) && typeof value[method] === "function") bundle[mime] = await value[method]();
        }
    }
    bundle["text/plain"] ??= util.inspect(value, { depth: 4, maxArrayLength: 200, maxStringLength: MAX_TEXT });
    if (!("application/json" in bundle) && isPlain(value)) bundle["application/json"] = jsonOf(value);
    return bundle;
}

function jsonOf(value) {
    try {
        const text = stringify(value);
        return text.length <= MAX_JSON ? parse(text) : undefined;
    } catch {
        return undefined; // a circle, a bigint
    }
}

function sendable(bundle) {
    const kept = {};
    let left = MAX_BUNDLE;
    for (const [mime, given] of Object.entries(bundle)) {
        let data = given instanceof Uint8Array ? Buffer.from(given).toString("base64") : given;
        if (mime === "text/plain" && String(data).length > MAX_TEXT) data = `${String(data).slice(0, MAX_TEXT)}…`;
        const text = stringify(data);
        if (text === undefined) continue;
        const size = text.length;
        if (typeof data !== "string" && text.replace(/[^,[{]+/g, "").length > MAX_VALUES) {
            write("stderr", `belljar: ${mime} of a result has over ${MAX_VALUES} values and is left out\n`);
            continue;
        }
        if (size > left) {
            write("stderr", `belljar: ${mime} of a result has ${size} characters and is left out; the limit is 4 MiB\n`);
            continue;
        }
        kept[mime] = data;
        left -= size;
    }
    return kept;
}

globalThis.display = async (value, { raw = false } = {}) => {
    send("result", { data: sendable(raw ? value : await bundleOf(value)), is_main: false });
};

// --- code --------------------------------------------------------------------------------------------------------------

const IMPORT = /^[ \t]*import\s+(?:([\w$]+)\s*,?\s*)?(?:\*\s*as\s+([\w$]+)|\{([^}]*)\})?\s*(?:from\s*)?(["'][^"'\n]+["'])[ \t]*(?:;|$)/gm;

// Texts and comments, or the beginning of a dynamic import.
const DYNAMIC = /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|\/\/[^\n]*|\/\*[^]*?\*\/)|(?<![\w$.])import(?=\s*\()/g;

// Static imports are for modules only; here they become `await import(…)`. And the inspector's code has no `import(…)` of its
// own: it calls the kernel's.
function withoutImports(code) {
    return withoutStaticImports(code).replace(DYNAMIC, (_, other) => other ?? `globalThis[Symbol.for("belljar.import")]`);
}

function withoutStaticImports(code) {
    return code.replace(IMPORT, (_, standard, all, some, from) => {
        const names = [standard && `default: ${standard}`, some && some.replace(/\s+as\s+/g, ": ")].filter(Boolean);
        const target = all && !standard ? all : names.length ? `{ ${names.join(", ")} }` : "";
        const rest = all && standard ? `; const ${all} = await import(${from})` : "";
        return `${target && `const ${target} = `}await import(${from})${rest};`;
    });
}

const session = new inspector.Session();
session.connect();

function post(method, parameters) {
    return new Promise((resolve, reject) => {
        session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
    });
}

// The value of a remote object, which the inspector describes only.
async function valueOf(remote) {
    if (remote.objectId === undefined) {
        if (remote.unserializableValue === undefined) return remote.value;
        return vm.runInThisContext(`(${remote.unserializableValue})`);
    }
    let value;
    globalThis[KERNEL] = (given) => { value = given; };
    const functionDeclaration = `function () { "use strict"; globalThis[Symbol.for("belljar.kernel")](this); }`;
    await post("Runtime.callFunctionOn", { objectId: remote.objectId, functionDeclaration });
    await post("Runtime.releaseObject", { objectId: remote.objectId });
    return value;
}

let interrupt = null; // rejects the run that goes on

class Interrupted extends Error {
    name = "Interrupted";
}

// REPL mode allows `await`, and variables that are declared again. SIGINT ends what runs before the first `await`.
async function evaluate(code, name) {
    let finish, fail;
    globalThis[KERNEL] = () => {
        const expression = `${withoutImports(code)}\n//# sourceURL=${name}`;
        session.post("Runtime.evaluate", { expression, replMode: true, awaitPromise: true }, (error, result) => {
            if (error) fail(error);
            else finish(result);
        });
    };
    const evaluation = new Promise((resolve, reject) => { [finish, fail] = [resolve, reject]; });
    evaluation.catch(() => {});
    interrupt = () => fail(new Interrupted("the run was interrupted"));
    try {
        vm.runInThisContext(`globalThis[Symbol.for("belljar.kernel")]()`, { breakOnSigint: true });
    } catch (error) {
        throw error?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED" ? new Interrupted("the run was interrupted") : error;
    }
    return await evaluation;
}

async function runCell(code, count) {
    const name = `cell-${count}`;
    try {
        const { result, exceptionDetails } = await evaluate(code, name);
        if (exceptionDetails) return described(await raised(exceptionDetails), name, code, exceptionDetails);
        const value = await valueOf(result);
        if (value !== undefined) send("result", { data: sendable(await bundleOf(value)), is_main: true });
        return null;
    } catch (error) {
        return described(error, name);
    }
}

async function raised(details) {
    return details.exception ? await valueOf(details.exception) : new Error(details.text);
}

function described(error, name, code, details) {
    if (!(util.types.isNativeError(error) || error instanceof Error)) {
        const shown = util.inspect(error);
        return { name: "Error", message: shown.slice(0, MAX_HELD), traceback: `thrown: ${shown}`.slice(0, MAX_TRACEBACK) };
    }
    const lines = String(error.stack ?? error).split("\n");
    const isOwn = (line) => /^\s+at .*(\[eval\]|node:|evalmachine|<anonymous>)/.test(line) && !/\bcell-\d/.test(line);
    let traceback = lines.filter((line) => !isOwn(line)).join("\n");
    if (error.name === "SyntaxError" && details && !details.stackTrace?.callFrames?.length) {
        const source = code.split("\n")[details.lineNumber] ?? "";
        traceback = `${name}:${details.lineNumber + 1}\n${source}\n${" ".repeat(details.columnNumber)}^\n${traceback}`;
    }
    return {
        name: String(error.name).slice(0, 1000),
        message: String(error.message).slice(0, MAX_HELD),
        traceback: traceback.slice(0, MAX_TRACEBACK),
    };
}

// --- the conversation --------------------------------------------------------------------------------------------------

process.on("SIGINT", () => interrupt?.());
process.on("uncaughtException", (error) => write("stderr", `uncaught: ${error?.stack ?? util.inspect(error)}\n`));
process.on("unhandledRejection", (error) => write("stderr", `unhandled rejection: ${error?.stack ?? util.inspect(error)}\n`));
process.exit = (code = 0) => {
    throw Object.assign(new Error(`process.exit(${code}) was called; the context goes on`), { name: "ProcessExit" });
};

let count = 0;

async function handle(request) {
    run = request.run;
    count += 1;
    for (const name of ["stdout", "stderr"]) {
        const text = held[name];
        held[name] = "";
        if (text) send(name, { text });
    }
    const error = await runCell(request.code, count);
    interrupt = null;
    if (error) send("error", error);
    send("done", { execution_count: count });
    run = null;
}

let rest = Buffer.alloc(0);
let last = Promise.resolve();
fs.createReadStream("", { fd: REQUESTS, autoClose: false })
    .on("data", (piece) => {
        rest = Buffer.concat([rest, piece]);
        for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
            const request = parse(rest.subarray(0, end).toString());
            rest = rest.subarray(end + 1);
            last = last.then(() => handle(request));
        }
    })
    .on("end", () => process.reallyExit(0));
send("ready", { version: `Node.js ${process.versions.node}` });
