// Text of programs for a page: colours and styles of SGR sequences (ECMA-48, 8.3.117), everything else of a terminal left out.
// Its input is hostile: matches are bounded, and the result is text and a small set of styles, never markup.

/** A run of text with one style. */
export interface Span {
  readonly text: string;
  readonly style: Style;
}

/** Classes of the style sheet, and colours beyond the sixteen as #rrggbb. */
export interface Style {
  readonly classes: string;
  readonly color: string;
  readonly background: string;
}

export const PLAIN: Style = { classes: "", color: "", background: "" };

/** SGR, other control sequences, operating system commands, other escapes, in this order. Every length is bounded. */
const SEQUENCE =
  /\x1b\[([0-9;:]{0,64})m|(?:\x1b\[|\x9b)[0-?]{0,256}[ -/]{0,16}[@-~]|(?:\x1b[\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c]{0,1024}(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]{0,8}[0-~]/g;
/** Characters that are not seen, or that change the order of others. */
const UNSEEN = /[\x00-\x08\x0a-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const CODES: Readonly<Record<number, string>> = { 1: "b", 2: "d", 3: "i", 4: "u", 7: "v", 9: "s" };
const ENDED: Readonly<Record<number, readonly string[]>> = { 22: ["b", "d"], 23: ["i"], 24: ["u"], 27: ["v"], 29: ["s"] };

/** The state of SGR from one line to the next. */
export class Sgr {
  #flags = new Set<string>();
  #color = "";
  #background = "";
  #style: Style = PLAIN;

  /** Split a line into spans. */
  spans(line: string): Span[] {
    if (!line.includes("\x1b") && !line.includes("\x9b") && !line.includes("\x9d")) {
      return [{ text: seen(line), style: this.#style }];
    }
    const found: Span[] = [];
    let at = 0;
    for (const match of line.matchAll(SEQUENCE)) {
      if (match.index > at) found.push({ text: seen(line.slice(at, match.index)), style: this.#style });
      if (match[1] !== undefined) this.#apply(match[1]);
      at = match.index + match[0].length;
    }
    if (at < line.length) found.push({ text: seen(line.slice(at)), style: this.#style });
    return found;
  }

  #apply(parameters: string): void {
    const codes = parameters.split(/[;:]/).map(Number);
    for (let at = 0; at < codes.length; at++) {
      const code = codes[at] ?? 0;
      if (code === 38 || code === 48) {
        const [color, used] = extended(codes, at + 1);
        at += used;
        if (code === 38) this.#color = color;
        else this.#background = color;
      } else this.#simple(code);
    }
    this.#style = this.#current();
  }

  #simple(code: number): void {
    if (code === 0) {
      this.#flags.clear();
      this.#color = this.#background = "";
    } else if (CODES[code]) this.#flags.add(CODES[code]);
    else if (ENDED[code]) for (const flag of ENDED[code]) this.#flags.delete(flag);
    else if (code >= 30 && code <= 37) this.#color = `f${code - 30}`;
    else if (code >= 90 && code <= 97) this.#color = `f${code - 82}`;
    else if (code === 39) this.#color = "";
    else if (code >= 40 && code <= 47) this.#background = `g${code - 40}`;
    else if (code >= 100 && code <= 107) this.#background = `g${code - 92}`;
    else if (code === 49) this.#background = "";
  }

  #current(): Style {
    const named = [this.#color, this.#background].filter((each) => each && !each.startsWith("#"));
    const classes = [...this.#flags, ...named].join(" ");
    const color = this.#color.startsWith("#") ? this.#color : "";
    const background = this.#background.startsWith("#") ? this.#background : "";
    return classes || color || background ? { classes, color, background } : PLAIN;
  }
}

/** Return the colour of `5;N` or `2;R;G;B`, and how many codes it took. */
function extended(codes: readonly number[], at: number): [string, number] {
  if (codes[at] === 2) return [hex(codes[at + 1], codes[at + 2], codes[at + 3]), 4];
  if (codes[at] !== 5) return ["", 0];
  const number = codes[at + 1] ?? 0;
  if (number < 16) return [`f${number}`, 2];
  if (number >= 232) return [hex(8 + 10 * (number - 232), 8 + 10 * (number - 232), 8 + 10 * (number - 232)), 2];
  const level = (value: number): number => (value ? 55 + 40 * value : 0);
  const cube = number - 16;
  return [hex(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6)), 2];
}

function hex(...parts: (number | undefined)[]): string {
  return `#${parts.map((part) => Math.min(255, part ?? 0).toString(16).padStart(2, "0")).join("")}`;
}

/** Return text in which every character is seen: controls as pictures, others by their code points. */
export function seen(text: string): string {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** Return text without any sequence, for a search. */
export function plain(line: string): string {
  return line.replace(SEQUENCE, "");
}
