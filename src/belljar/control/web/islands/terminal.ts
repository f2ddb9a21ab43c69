// A terminal in a sandbox: starts a shell by the API, attaches to it over a WebSocket, and shows it with xterm.js.
// Output is the guest's. It becomes cells of the terminal and nothing else: no links, no titles, no clipboard.
import { FitAddon } from "@xterm/addon-fit";
import { Terminal, type ITheme } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";

import { mount, projectHeaders, reasonOf } from "./islands";
import { isolatedDocument } from "./terminal_document";

const SHELL = ["/bin/sh", "-c", "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"];
const STDIN = 0;
// Input is sent in pieces below the limit of a message.
const MAX_INPUT_BYTES = 64 * 1024;
// Output that waits to be drawn: above the first, no more is received; below the second, again.
const MAX_PENDING_BYTES = 2 * 1024 * 1024;
const RESUME_BYTES = 256 * 1024;
// The shell outlives its connection for ten seconds.
const RECONNECT_MS = [250, 500, 1000, 2000, 3000];
const LEAVE_MS = 1000;

interface Problem {
  detail?: string;
}

class SandboxTerminal {
  private readonly terminal: Terminal;
  private readonly fit = new FitAddon();
  private readonly encoder = new TextEncoder();
  private socket: WebSocket | null = null;
  private pid: number | null = null;
  // Bytes of output that were received; null: unknown, since the first that is kept was not the first of all.
  private received: number | null = 0;
  private pending = 0;
  private isHeld = false;
  private hasEnded = false;
  private failures = 0;
  private escapedAt = 0;

  constructor(
    private readonly root: HTMLElement,
    private readonly api: string,
    screen: HTMLElement,
    private readonly state: HTMLElement,
  ) {
    this.terminal = new Terminal({
      cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
      documentOverride: isolatedDocument(document),
      fontFamily: "ui-monospace, 'Cascadia Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace",
      fontSize: 14,
      linkHandler: { activate: () => undefined },
      minimumContrastRatio: 4.5,
      scrollback: 5000,
      theme: theme(),
    });
    this.terminal.loadAddon(this.fit);
    this.terminal.open(screen);
    this.fit.fit();
    this.terminal.onData((text) => this.send(this.encoder.encode(text)));
    this.terminal.onBinary((text) => this.send(Uint8Array.from(text, (each) => each.charCodeAt(0) & 255)));
    this.terminal.onResize(({ cols, rows }) => this.message({ type: "resize", columns: cols, rows }));
    this.terminal.attachCustomKeyEventHandler((event) => this.takes(event));
    new ResizeObserver(() => this.fit.fit()).observe(screen);
    document.addEventListener("belljar:theme", () => (this.terminal.options.theme = theme()));
  }

  async start(pid: number | null): Promise<void> {
    this.close();
    this.terminal.reset();
    this.pending = 0;
    this.hasEnded = this.isHeld = false;
    this.failures = 0;
    this.received = pid === null ? 0 : null;
    this.buttons();
    this.show("starting a shell…");
    if (pid !== null) {
      this.pid = pid;
      this.connect(() => undefined);
      return;
    }
    const starting = new AbortController();
    try {
      this.pid = await this.startShell(starting.signal);
      // The request is a reader of the shell until the WebSocket is one.
      this.connect(() => starting.abort());
    } catch (error) {
      starting.abort();
      this.hasEnded = true;
      this.buttons();
      this.show(error instanceof Error ? error.message : String(error), true);
    }
  }

  end(): void {
    this.message({ type: "signal", signal: "SIGKILL", descendants: true });
  }

  private async startShell(signal: AbortSignal): Promise<number> {
    const response = await fetch(`${this.api}/exec?stream=true`, {
      method: "POST",
      signal,
      headers: { "Content-Type": "application/json", ...projectHeaders() },
      body: JSON.stringify({
        args: SHELL,
        env: { TERM: "xterm-256color" },
        pty: { columns: this.terminal.cols, rows: this.terminal.rows },
      }),
    });
    if (!response.ok || response.body === null) throw new Error(await reasonOf(response));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the server ended the answer before the shell started; try again");
      text += value;
      const started = /^event: started\ndata: (.*)\n/m.exec(text);
      if (started?.[1] !== undefined) {
        // What follows is read and dropped until the request is aborted.
        void this.drop(reader);
        return (JSON.parse(started[1]) as { pid: number }).pid;
      }
      const failed = /^event: error\ndata: (.*)\n/m.exec(text);
      if (failed?.[1] !== undefined) throw new Error((JSON.parse(failed[1]) as Problem).detail ?? "it failed");
    }
  }

  private async drop(reader: ReadableStreamDefaultReader<string>): Promise<void> {
    try {
      while (!(await reader.read()).done);
    } catch {
      // aborted
    }
  }

  private connect(onOpen: () => void): void {
    const from = this.received === null ? "" : `?stdout_from=${this.received}`;
    const url = new URL(`${this.api}/processes/${this.pid}/attach${from}`, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      onOpen();
      this.failures = 0;
      this.show("connected");
      this.message({ type: "resize", columns: this.terminal.cols, rows: this.terminal.rows });
      this.terminal.focus();
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (data instanceof ArrayBuffer) this.output(new Uint8Array(data, 1));
      else this.report(JSON.parse(data as string) as { type: string } & Record<string, unknown>);
    };
    socket.onclose = () => {
      if (socket === this.socket) this.lost();
    };
  }

  private output(bytes: Uint8Array): void {
    if (this.received !== null) this.received += bytes.length;
    this.pending += bytes.length;
    this.terminal.write(bytes, () => {
      this.pending -= bytes.length;
      if (this.isHeld && this.pending <= RESUME_BYTES && !this.hasEnded) {
        this.isHeld = false;
        this.connect(() => undefined);
      }
    });
    // A browser cannot stop a WebSocket from receiving. The shell waits for its reader, so nothing is lost.
    if (this.pending > MAX_PENDING_BYTES && this.received !== null) {
      this.isHeld = true;
      this.close();
    }
  }

  private report(message: { type: string } & Record<string, unknown>): void {
    if (message.type === "exit") {
      this.hasEnded = true;
      const how = message.signal ?? `exit code ${String(message.exit_code)}`;
      this.show(`the shell has ended: ${String(how)}`);
      this.buttons();
    } else if (message.type === "error") {
      this.hasEnded = true;
      this.show(String(message.detail), true);
      this.buttons();
    }
  }

  private lost(): void {
    this.socket = null;
    if (this.hasEnded || this.isHeld) return;
    const delay = RECONNECT_MS[this.failures++];
    if (delay === undefined) {
      this.hasEnded = true;
      this.buttons();
      this.show("the connection is lost, and the shell may have ended; start a new one", true);
      return;
    }
    this.show("the connection is lost; connecting again…", true);
    setTimeout(() => {
      if (this.socket === null && !this.hasEnded) this.connect(() => undefined);
    }, delay);
  }

  private send(bytes: Uint8Array): void {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    for (let at = 0; at < bytes.length; at += MAX_INPUT_BYTES) {
      const piece = bytes.subarray(at, at + MAX_INPUT_BYTES);
      const message = new Uint8Array(piece.length + 1);
      message[0] = STDIN;
      message.set(piece, 1);
      this.socket.send(message);
    }
  }

  private message(fields: Record<string, unknown>): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(fields));
  }

  private close(): void {
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
  }

  // Escape, then Tab, leaves the terminal: nobody is caught in it without a mouse.
  private takes(event: KeyboardEvent): boolean {
    if (event.type !== "keydown") return true;
    if (event.key === "Tab" && performance.now() - this.escapedAt < LEAVE_MS) return false;
    this.escapedAt = event.key === "Escape" ? performance.now() : 0;
    if (event.ctrlKey && event.shiftKey && event.code === "KeyC") {
      event.preventDefault();
      if (this.terminal.hasSelection()) void navigator.clipboard?.writeText(this.terminal.getSelection());
      return false;
    }
    return !(event.ctrlKey && event.shiftKey && event.code === "KeyV");
  }

  private buttons(): void {
    const [start, end] = ["[data-terminal-new]", "[data-terminal-end]"].map((each) =>
      this.root.querySelector<HTMLElement>(each),
    );
    if (start) start.hidden = !this.hasEnded;
    if (end) end.hidden = this.hasEnded;
  }

  private show(text: string, isProblem = false): void {
    this.state.textContent = text;
    this.state.classList.toggle("error", isProblem);
  }
}

function theme(): ITheme {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("span");
  document.body.append(probe);
  const colour = (name: string) => {
    probe.style.color = style.getPropertyValue(name);
    return getComputedStyle(probe).color;
  };
  const found: ITheme = {
    background: colour("--sunken"),
    foreground: colour("--text"),
    cursor: colour("--accent"),
    cursorAccent: colour("--surface"),
    selectionBackground: colour("--accent"),
    selectionForeground: colour("--on-accent"),
  };
  probe.remove();
  return found;
}

function begin(root: HTMLElement): void {
  const screen = root.querySelector<HTMLElement>("[data-terminal-screen]");
  const state = root.querySelector<HTMLElement>("[data-terminal-state]");
  const api = root.dataset.url;
  if (screen === null || state === null || api === undefined) return;
  const terminal = new SandboxTerminal(root, api, screen, state);
  root.querySelector("[data-terminal-new]")?.addEventListener("click", () => void terminal.start(null));
  root.querySelector("[data-terminal-end]")?.addEventListener("click", () => terminal.end());
  const pid = /^\d{1,10}$/.exec(new URLSearchParams(location.search).get("pid") ?? "");
  void terminal.start(pid === null ? null : Number(pid[0]));
}

mount("terminal", begin);
