// Bundles the islands into a folder: files with a hash in their names, each also compressed, and manifest.json, which has the
// file of each entry. Run by ../bundle.py in a copy of this folder, after `npm ci`.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { build } from "esbuild";

const ENTRIES = ["app", "log", "plots", "previews", "flows", "editor", "playground", "terminal", "upload"];

const out = process.argv[2];
const { outputFiles, metafile } = await build({
  entryPoints: ENTRIES.filter((name) => existsSync(`${name}.ts`)).map((name) => `${name}.ts`),
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "inline",
  entryNames: "[name]-[hash]",
  chunkNames: "part-[hash]",
  outdir: out,
  write: false,
  metafile: true,
  logLevel: "warning",
});

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
for (const { path, contents } of outputFiles) {
  const file = join(out, basename(path));
  writeFileSync(file, contents);
  writeFileSync(`${file}.gz`, gzipSync(contents, { level: 9 }));
  writeFileSync(`${file}.br`, brotliCompressSync(contents, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }));
}

const manifest = {};
for (const [path, output] of Object.entries(metafile.outputs)) {
  if (!output.entryPoint) continue;
  const name = basename(output.entryPoint, ".ts");
  manifest[`${name}.js`] = basename(path);
  if (output.cssBundle) manifest[`${name}.css`] = basename(output.cssBundle);
}
writeFileSync(join(out, "manifest.json"), JSON.stringify(manifest, null, 1));
const digest = createHash("sha256").update(JSON.stringify(manifest)).digest("hex").slice(0, 12);
console.log(`${Object.keys(manifest).length} entries, ${digest}`);
