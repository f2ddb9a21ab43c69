// What a machine talked to: destinations with their bytes, as bars beside each other, and those that were refused.
import { seen } from "./ansi";
import { element, mount, projectHeaders } from "./islands";
import { bytes, whole } from "./numbers";

interface Flow {
  readonly protocol: string;
  readonly address: string;
  readonly port: number | null;
  readonly verdict: string;
  readonly rule: string | null;
  readonly name: string | null;
  readonly tcp_state: string | null;
  readonly bytes_out: number;
  readonly bytes_in: number;
}

interface Flows {
  readonly source: string;
  readonly source_reason: string | null;
  readonly flows: readonly Flow[];
  readonly left_out: { readonly flows: number; readonly bytes_out: number; readonly bytes_in: number };
  readonly lost: Readonly<Record<string, number>>;
  readonly alerts: readonly { readonly message: string; readonly action: string }[];
}

const MAX_SHOWN = 100;

/** What was read last, which a page that refreshes itself shows at once. */
const known = new Map<string, Flows>();

mount("flows", (section) => {
  const reading = new AbortController();
  const url = section.dataset.url ?? "";
  const place = section.querySelector<HTMLElement>("[data-here]");
  const before = known.get(url);
  if (before && place) place.replaceChildren(...shown(before));
  void fetch(url, { headers: projectHeaders(), signal: reading.signal })
    .then(async (response) => (response.ok ? ((await response.json()) as Flows) : null))
    .then((found) => {
      if (!found?.flows?.length || !place) return;
      known.set(url, found);
      place.replaceChildren(...shown(found));
    })
    .catch(() => undefined); // The page has what was refused already.
  return () => reading.abort();
});

function shown(found: Flows): HTMLElement[] {
  const parts = found.alerts.map((alert) =>
    element("p", "alert", `${seen(alert.message)}${alert.action === "stop" ? ": stopped" : ""}`),
  );
  const most = Math.max(1, ...found.flows.map((flow) => flow.bytes_in + flow.bytes_out));
  const table = element("table", "stack");
  const head = element("tr");
  for (const title of ["Destination", "Verdict", "Sent", "Received", "State"]) {
    const cell = element("th", title === "Sent" || title === "Received" ? "number" : "", title);
    cell.scope = "col";
    head.append(cell);
  }
  table.createTHead().append(head);
  table.createTBody().append(...found.flows.slice(0, MAX_SHOWN).map((flow) => row(flow, most)));
  return [...parts, table, element("p", "hint flows-note", note(found))];
}

function row(flow: Flow, most: number): HTMLElement {
  const made = element("tr");
  const destination = element("td", "mono");
  const port = flow.port === null ? flow.protocol : `${flow.port}/${flow.protocol}`;
  destination.append(element("span", "name", seen(flow.name ?? flow.address)), ` ${port}`);
  if (flow.name) destination.append(element("span", "small muted", ` ${flow.address}`));
  destination.append(bar(flow.bytes_in + flow.bytes_out, most));
  const verdict = element("td");
  const isRefused = flow.verdict === "refused";
  verdict.append(element("span", `status ${isRefused ? "bad" : "good"}`, flow.verdict));
  if (flow.rule) verdict.append(element("span", "small muted", ` ${seen(flow.rule)}`));
  const state = element("td", "", (flow.tcp_state ?? "").replace("_", " "));
  made.append(destination, verdict, number("Sent", flow.bytes_out), number("Received", flow.bytes_in), state);
  return made;
}

function number(label: string, value: number): HTMLElement {
  const made = element("td", "number", bytes(value));
  made.dataset.label = label;
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

function bar(value: number, most: number): SVGElement {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "meter");
  made.setAttribute("viewBox", "0 0 100 6");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("aria-hidden", "true");
  const part = document.createElementNS(SVG, "rect");
  part.setAttribute("class", "part");
  part.setAttribute("height", "6");
  part.setAttribute("width", String((100 * value) / most));
  made.append(part);
  return made;
}

function note(found: Flows): string {
  const rest = Math.max(0, found.flows.length - MAX_SHOWN) + found.left_out.flows;
  const lost = Object.values(found.lost).reduce((sum, value) => sum + value, 0);
  return [
    found.source === "conntrack" ? `Counted by conntrack: ${found.source_reason ?? "eBPF is not there"}.` : "",
    rest ? `${whole(rest)} more destinations are counted, and not listed.` : "",
    lost ? `${whole(lost)} observations were lost.` : "",
  ]
    .filter(Boolean)
    .join(" ");
}
