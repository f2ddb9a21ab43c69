// Server-sent events by fetch: unlike EventSource it tells why a request failed, and a slow page slows the server down.
import { projectHeaders, reasonOf } from "./islands";

export interface ServerEvent {
  readonly name: string;
  readonly data: unknown;
}

/** The server answered with an error; trying again does not help. */
export class Refused extends Error {}

/** An event is never larger; a stream that sends more is broken. */
const MAX_EVENT_CHARACTERS = 16 * 1024 * 1024;
const FIRST_PAUSE_MILLISECONDS = 500;
const MAX_PAUSE_MILLISECONDS = 15_000;

/**
 * Yield the events of an address until `end`; a connection that breaks is opened again where it was.
 * `onBreak` is called before each new attempt.
 */
export async function* events(
  url: string,
  signal: AbortSignal,
  onBreak: () => void,
): AsyncGenerator<readonly ServerEvent[]> {
  const place = { id: "" };
  let pause = FIRST_PAUSE_MILLISECONDS;
  while (!signal.aborted) {
    try {
      for await (const batch of once(url, signal, place)) {
        pause = FIRST_PAUSE_MILLISECONDS;
        yield batch;
        if (batch.some((event) => event.name === "end")) return;
      }
    } catch (error) {
      if (error instanceof Refused || signal.aborted) throw error;
    }
    if (signal.aborted) return;
    onBreak();
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, MAX_PAUSE_MILLISECONDS);
  }
}

async function* once(
  url: string,
  signal: AbortSignal,
  place: { id: string },
): AsyncGenerator<readonly ServerEvent[]> {
  const headers: Record<string, string> = { Accept: "text/event-stream", ...projectHeaders() };
  if (place.id) headers["Last-Event-ID"] = place.id;
  const response = await fetch(url, { headers, signal, cache: "no-store" });
  if (!response.ok || !response.body) {
    if (response.status >= 500 || response.status === 429) throw new Error(`status ${response.status}`);
    throw new Refused(await reasonOf(response));
  }
  let text = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const end = text.lastIndexOf("\n\n");
      if (end < 0) {
        if (text.length > MAX_EVENT_CHARACTERS) throw new Refused("the server sent an event that is too large");
        continue;
      }
      const batch = text.slice(0, end).split("\n\n").map((event) => parsed(event, place));
      text = text.slice(end + 2);
      yield batch.filter((event) => event !== null);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

function parsed(text: string, place: { id: string }): ServerEvent | null {
  let name = "message";
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("data: ")) data += line.slice(6);
    else if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("id: ")) place.id = line.slice(4);
  }
  return data ? { name, data: JSON.parse(data) as unknown } : null;
}
