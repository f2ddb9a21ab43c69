// Previews of artifacts: files that a job wrote, which may be anything. Their bytes are read when somebody opens a preview,
// shown as a picture, a table or text, and never run: pictures are of four formats by their first bytes, all else is text.
import { element, mount, projectHeaders, reasonOf } from "./islands";

const MAX_IMAGE_BYTES = 8 * 1024 * 1024;
const MAX_TEXT_BYTES = 256 * 1024;
const MAX_PIXELS = 50_000_000;
const MAX_ROWS = 200;
const MAX_COLUMNS = 50;
const MAX_CELL = 300;

mount("preview", (details) => {
  let url = "";
  const open = async (): Promise<void> => {
    const place = details.querySelector<HTMLElement>("[data-here]");
    if (!(details as HTMLDetailsElement).open || !place || details.dataset.read) return;
    details.dataset.read = "yes";
    place.replaceChildren(element("p", "hint", "Reading…"));
    try {
      url = await show(place, details.dataset.url ?? "", details.dataset.name ?? "", Number(details.dataset.size));
    } catch (error) {
      delete details.dataset.read; // The next opening tries again.
      place.replaceChildren(element("p", "error", error instanceof Error ? error.message : "It cannot be read."));
    }
  };
  details.addEventListener("toggle", open);
  return () => {
    details.removeEventListener("toggle", open);
    if (url) URL.revokeObjectURL(url);
  };
});

/** Fill a place with a preview. Return the address to revoke, if it has one. */
async function show(place: HTMLElement, url: string, name: string, size: number): Promise<string> {
  const bytes = await read(url, size <= MAX_IMAGE_BYTES ? MAX_IMAGE_BYTES : MAX_TEXT_BYTES);
  const type = pictureType(bytes);
  if (type && size <= MAX_IMAGE_BYTES) return picture(place, bytes, type, name);
  const part = bytes.subarray(0, MAX_TEXT_BYTES);
  const text = new TextDecoder().decode(part);
  if (part.includes(0)) {
    place.replaceChildren(element("p", "hint", "It is no text and no picture. Download it."));
    return "";
  }
  const separator = name.endsWith(".tsv") ? "\t" : ",";
  place.replaceChildren(/\.(csv|tsv)$/i.test(name) ? table(text, separator) : element("pre", "", text));
  if (size > part.length) place.append(element("p", "hint", "This is its beginning. Download it for all."));
  return "";
}

async function read(url: string, limit: number): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url, { headers: projectHeaders() });
  if (!response.ok || !response.body) throw new Error(`It cannot be read: ${await reasonOf(response)}.`);
  const reader = response.body.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  while (length < limit) {
    const { value, done } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
  }
  await reader.cancel().catch(() => undefined);
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function pictureType(bytes: Uint8Array): string {
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  if (head.startsWith("\x89PNG\r\n\x1a\n")) return "image/png";
  if (head.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (/^GIF8[79]a/.test(head)) return "image/gif";
  if (/^RIFF.{4}WEBP/s.test(head)) return "image/webp";
  return "";
}

function picture(place: HTMLElement, bytes: Uint8Array<ArrayBuffer>, type: string, name: string): string {
  if (pixels(bytes, type) > MAX_PIXELS) {
    place.replaceChildren(element("p", "hint", "The picture is too large to be shown here. Download it."));
    return "";
  }
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  const image = element("img");
  image.alt = name;
  image.addEventListener("error", () => place.replaceChildren(element("p", "hint", "The picture is damaged.")));
  image.src = url;
  place.replaceChildren(image);
  return url;
}

/** Return how many pixels a PNG or GIF claims to have: a small file can be a picture that fills the memory. */
function pixels(bytes: Uint8Array, type: string): number {
  const view = new DataView(bytes.buffer);
  if (type === "image/png" && bytes.length >= 24) return view.getUint32(16) * view.getUint32(20);
  if (type === "image/gif" && bytes.length >= 10) return view.getUint16(6, true) * view.getUint16(8, true);
  return 0;
}

/** Return a table of comma-separated values (RFC 4180), its first rows and columns. */
function table(text: string, separator: string): HTMLElement {
  const [head, ...rows] = parsed(text, separator);
  const made = element("table");
  made.createTHead().append(row(head ?? [], "th"));
  made.createTBody().append(...rows.map((cells) => row(cells, "td")));
  return made;
}

function row(cells: readonly string[], tag: "th" | "td"): HTMLElement {
  const made = element("tr");
  made.append(...cells.slice(0, MAX_COLUMNS).map((cell) => element(tag, "", cell.slice(0, MAX_CELL))));
  return made;
}

function parsed(text: string, separator: string): string[][] {
  const rows: string[][] = [];
  let cells: string[] = [];
  let cell = "";
  let isQuoted = false;
  for (let at = 0; at < text.length && rows.length <= MAX_ROWS; at++) {
    const character = text[at] ?? "";
    if (isQuoted) {
      if (character !== '"') cell += character;
      else if (text[at + 1] === '"') cell += text[at++];
      else isQuoted = false;
    } else if (character === '"' && !cell) isQuoted = true;
    else if (character === separator) {
      cells.push(cell);
      cell = "";
    } else if (character === "\n") {
      rows.push([...cells, cell.replace(/\r$/, "")]);
      cells = [];
      cell = "";
    } else cell += character;
  }
  if (cell || cells.length) rows.push([...cells, cell]);
  return rows;
}
