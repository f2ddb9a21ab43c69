// The panel of a job's output: the view, which streams, follow, search, and what the connection does.
import { events, Refused } from "./events";
import { element } from "./islands";
import { LogView } from "./log_view";

/** The streams that can be chosen: title → the value of `stream`. */
const STREAMS: Readonly<Record<string, string>> = {
  "stdout and stderr": "",
  stdout: "stdout",
  stderr: "stderr",
  build: "build",
  console: "console",
  "all attempts": "all",
};
const SEARCH_DELAY_MILLISECONDS = 150;

export class LogPanel {
  #view = new LogView();
  #state = element("p", "log-state");
  #count = element("output", "count");
  #search = element("input");
  #streams = element("select");
  #url: string;
  #reading = new AbortController();
  #onEnd: (data: unknown) => void;
  #found: number[] = [];
  #current = -1;
  #steps: HTMLElement[] = [];
  #timer = 0;

  /** Fill a panel: its tools stay, and what shows its output without a script goes. */
  constructor(panel: HTMLElement, url: string, onEnd: (data: unknown) => void) {
    this.#url = url;
    this.#onEnd = onEnd;
    for (const each of panel.querySelectorAll(":scope > :not(.log-tools), .log-tools [data-made]")) each.remove();
    panel.querySelector(".log-tools h2")?.after(...this.#tools());
    panel.append(this.#view.view, this.#state);
    void this.#read();
  }

  stop(): void {
    this.#reading.abort();
    this.#view.stop();
    clearTimeout(this.#timer);
  }

  #tools(): HTMLElement[] {
    this.#streams.setAttribute("aria-label", "Streams");
    for (const [title, value] of Object.entries(STREAMS)) this.#streams.add(new Option(title, value));
    this.#streams.addEventListener("change", () => this.#restart());
    this.#search.type = "search";
    this.#search.placeholder = "Search";
    this.#search.setAttribute("aria-label", "Search in the output");
    this.#search.addEventListener("input", () => this.#searchSoon());
    this.#search.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.#step(event.shiftKey ? -1 : 1);
    });
    const previous = button("Previous", () => this.#step(-1));
    const next = button("Next", () => this.#step(1));
    this.#steps = [previous, next];
    for (const each of this.#steps) each.hidden = true;
    const follow = button("Follow", () => this.#view.follow(true));
    follow.setAttribute("aria-pressed", "true");
    this.#view.onFollow = (isFollowing) => follow.setAttribute("aria-pressed", String(isFollowing));
    const tools = [this.#streams, this.#search, this.#count, previous, next, follow];
    for (const each of tools) each.dataset.made = "";
    return tools;
  }

  #restart(): void {
    this.#reading.abort();
    this.#reading = new AbortController();
    this.#view.lines.clear();
    this.#view.changed();
    void this.#read();
  }

  async #read(): Promise<void> {
    const { signal } = this.#reading;
    const stream = this.#streams.value;
    let attempt = 0;
    this.#say("Connecting…");
    try {
      const url = `${this.#url}?follow=true${stream ? `&stream=${stream}` : ""}`;
      for await (const batch of events(url, signal, () => this.#say("The connection broke; connecting again…"))) {
        const before = this.#view.lines.dropped;
        for (const { name, data } of batch) {
          if (name === "end") {
            this.#ended(data);
            continue;
          }
          const record = data as { text: string; attempt: number };
          if (attempt && record.attempt > attempt) this.#view.lines.note(`attempt ${record.attempt} begins`);
          attempt = record.attempt;
          this.#view.lines.append(name, record.text);
        }
        this.#view.dropped(this.#view.lines.dropped - before);
        this.#view.changed();
        if (!batch.some((event) => event.name === "end")) this.#say("Live");
        if (this.#search.value) this.#searchSoon();
      }
    } catch (error) {
      if (signal.aborted) return;
      this.#say(error instanceof Refused ? `Cannot read the output: ${error.message}` : "The output cannot be read");
    }
  }

  #ended(data: unknown): void {
    const { status, exit_code: exit } = data as { status: string; exit_code: number | null };
    const rows = this.#view.lines.rows.length;
    this.#say(
      `${rows ? "" : "No output. "}The job ${status === "succeeded" ? "succeeded" : `ended: ${status.replace("_", " ")}`}` +
        (exit === null ? "" : `, exit code ${exit}`),
    );
    document.body.dispatchEvent(new CustomEvent("job-ended"));
    this.#onEnd(data);
  }

  #say(text: string): void {
    const { dropped, rows } = this.#view.lines;
    const kept = dropped ? ` The newest ${rows.length.toLocaleString("en")} lines are here; download the log for all.` : "";
    const said = `${text}.${kept}`.replace("….", "…");
    if (this.#state.textContent !== said) this.#state.textContent = said;
  }

  #searchSoon(): void {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#find(), SEARCH_DELAY_MILLISECONDS);
  }

  #find(): void {
    const query = this.#search.value.toLowerCase();
    const { rows, dropped } = this.#view.lines;
    this.#found = [];
    if (query) {
      rows.forEach((row, index) => {
        if (row.text.toLowerCase().includes(query)) this.#found.push(dropped + index);
      });
    }
    if (!this.#found.includes(this.#current)) this.#current = -1;
    this.#show();
  }

  #step(by: number): void {
    if (!this.#found.length) return;
    const at = this.#found.indexOf(this.#current);
    const next = at < 0 ? (by > 0 ? 0 : this.#found.length - 1) : (at + by + this.#found.length) % this.#found.length;
    this.#current = this.#found[next] ?? -1;
    this.#show(true);
  }

  #show(isShown = false): void {
    const at = this.#found.indexOf(this.#current);
    const total = this.#found.length;
    for (const each of this.#steps) each.hidden = total === 0;
    this.#count.textContent = this.#search.value ? (total ? `${at < 0 ? "" : `${at + 1} of `}${total} lines` : "no line") : "";
    this.#view.mark(new Set(this.#found), this.#current, isShown);
  }
}

function button(text: string, onClick: () => void): HTMLButtonElement {
  const made = element("button", "quiet", text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}
