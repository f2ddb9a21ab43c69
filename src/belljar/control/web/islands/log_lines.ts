// The newest lines of a log, in bounded memory, whatever is written: lines are cut, the oldest are dropped.
import { plain, Sgr, type Span } from "./ansi";

export const MAX_LINES = 20_000;
/** Of all rows together, in UTF-16 units, with what their spans take beside the text. */
const MAX_SIZE = 8 * 1024 * 1024;
const SPAN_SIZE = 48;
/** A longer line continues on the next row. */
const MAX_ROW = 2000;
/** Lines are dropped in batches. */
const SLACK = 1.1;

/** One row: the text with its sequences, and what it looks like once it has been drawn. */
export interface Row {
  readonly stream: string;
  readonly text: string;
  readonly spans: readonly Span[];
}

/** The part of a line that has no end yet. */
interface Partial {
  text: string;
  readonly sgr: Sgr;
}

export class LogLines {
  rows: Row[] = [];
  /** How many rows were dropped: the number of the first row that is there. */
  dropped = 0;
  #size = 0;
  #partials = new Map<string, Partial>();
  /** The row of each stream's part of a line, at the end of `rows`. */
  #open: Row[] = [];

  /** Append what a stream wrote. */
  append(stream: string, text: string): void {
    this.#close();
    const partial = this.#partial(stream);
    const parts = (partial.text + text).split("\n");
    partial.text = afterReturn(parts.pop() ?? "");
    for (const part of parts) this.#line(stream, partial.sgr, part);
    while (partial.text.length > MAX_ROW) {
      const end = cut(partial.text);
      this.#push(stream, partial.sgr, partial.text.slice(0, end));
      partial.text = partial.text.slice(end);
    }
    this.#drop();
    this.#reopen();
  }

  /** Append a line of the page's own. */
  note(text: string): void {
    this.#close();
    this.rows.push({ stream: "note", text, spans: [{ text, style: { classes: "", color: "", background: "" } }] });
    this.#reopen();
  }

  clear(): void {
    this.rows = [];
    this.dropped = this.#size = 0;
    this.#partials.clear();
    this.#open = [];
  }

  #partial(stream: string): Partial {
    let found = this.#partials.get(stream);
    if (!found) this.#partials.set(stream, (found = { text: "", sgr: new Sgr() }));
    return found;
  }

  #line(stream: string, sgr: Sgr, text: string): void {
    // A carriage return starts the line anew: of a progress bar, the last state is left.
    let line = afterReturn(text.endsWith("\r") ? text.slice(0, -1) : text);
    do {
      const end = cut(line);
      this.#push(stream, sgr, line.slice(0, end));
      line = line.slice(end);
    } while (line);
  }

  #push(stream: string, sgr: Sgr, text: string): void {
    const row = { stream, text: text.includes("\x1b") ? plain(text) : text, spans: sgr.spans(text) };
    this.#size += sizeOf(row);
    this.rows.push(row);
  }

  /** Remove the rows of unfinished lines before others are appended. */
  #close(): void {
    this.rows.length -= this.#open.length;
    this.#open = [];
  }

  #reopen(): void {
    for (const [stream, { text }] of this.#partials) {
      if (!text) continue;
      this.#open.push({ stream, text: plain(text), spans: new Sgr().spans(text) });
    }
    this.rows.push(...this.#open);
  }

  #drop(): void {
    let count = this.rows.length > MAX_LINES * SLACK ? this.rows.length - MAX_LINES : 0;
    if (!count && this.#size > MAX_SIZE * SLACK) {
      let rest = this.#size;
      while (rest > MAX_SIZE && count < this.rows.length - 1) rest -= sizeOf(this.rows[count++]);
    }
    if (!count) return;
    for (const row of this.rows.splice(0, count)) this.#size -= sizeOf(row);
    this.#size = Math.max(0, this.#size);
    this.dropped += count;
  }
}

/** Return what a row takes: one whose colours change with each character takes many times its text. */
function sizeOf(row: Row | undefined): number {
  return row ? row.text.length + SPAN_SIZE * row.spans.length : 0;
}

/** Return where to cut a line: not inside a pair of surrogates. */
function cut(line: string): number {
  if (line.length <= MAX_ROW) return line.length;
  const last = line.charCodeAt(MAX_ROW - 1);
  return last >= 0xd800 && last <= 0xdbff ? MAX_ROW - 1 : MAX_ROW;
}

/** Return what is left of a line after its last carriage return, but one at its end. */
function afterReturn(line: string): string {
  return line.length > 1 ? line.slice(line.lastIndexOf("\r", line.length - 2) + 1) : line;
}
