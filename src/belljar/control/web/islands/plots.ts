// Plots: of a table on the page, and of what was sampled inside a job's machine.
import { element, mount, projectHeaders } from "./islands";
import { draw, type PlotData, type Series } from "./plot";

/** Of a table: data-source is its id, data-columns the names of its columns. */
mount("plot", (figure) => {
  const data = ofTable(figure);
  return data ? draw(figure, figure.getAttribute("aria-label") ?? "", data) : undefined;
});

function ofTable(figure: HTMLElement): PlotData | null {
  const table = document.getElementById(figure.dataset.source ?? "");
  if (!(table instanceof HTMLTableElement)) return null;
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
  const rows = [...(table.tBodies[0]?.rows ?? [])];
  const times = rows.map((row) => Date.parse(row.querySelector("time")?.dateTime ?? "") / 1000);
  const series = (figure.dataset.columns ?? "").split(",").map((name): Series => {
    const index = heads.findIndex((head) => head.dataset.column === name);
    const values = rows.map((row) => row.cells[index]?.dataset.value ?? "");
    return { title: heads[index]?.textContent ?? name, values: values.map((value) => (value === "" ? null : Number(value))) };
  });
  return { times, series, unit: figure.dataset.unit ?? "", kind: figure.dataset.kind === "bars" ? "bars" : "lines" };
}

/** What `GET …/metrics` returns: arrays of the same length. */
interface Samples {
  readonly seconds?: readonly number[];
  readonly cpu?: readonly (number | null)[];
  readonly memory_bytes?: readonly (number | null)[];
  readonly received_bytes?: readonly (number | null)[];
  readonly sent_bytes?: readonly (number | null)[];
}

/** What was read last, which a page that refreshes itself shows at once. */
const known = new Map<string, Samples>();

mount("job-metrics", (section) => {
  const place = section.querySelector<HTMLElement>("[data-here]");
  const url = section.dataset.url ?? "";
  const reading = new AbortController();
  let plots: (() => void)[] = [];
  const stop = (): void => {
    for (const remove of plots) remove();
    plots = [];
  };
  const show = (samples: Samples): void => {
    if (!place) return;
    stop();
    place.replaceChildren();
    plots = figures(samples).map(([title, data]) => {
      const figure = element("figure", "plot");
      place.append(figure);
      return draw(figure, title, data);
    });
  };
  const before = known.get(url);
  if (before) show(before);
  void read(url, reading.signal).then((samples) => {
    if (!samples || reading.signal.aborted || samples.seconds?.length === before?.seconds?.length) return;
    known.set(url, samples);
    show(samples);
  });
  return () => {
    reading.abort();
    stop();
  };
});

async function read(url: string, signal: AbortSignal): Promise<Samples | null> {
  try {
    const response = await fetch(url, { headers: projectHeaders(), signal });
    if (!response.ok) return null;
    const samples = (await response.json()) as Samples;
    return (samples.seconds?.length ?? 0) > 1 ? samples : null;
  } catch {
    return null; // The page says that nothing was sampled.
  }
}

function figures(samples: Samples): [string, PlotData][] {
  const times = samples.seconds ?? [];
  const made: [string, PlotData][] = [];
  const add = (title: string, unit: string, ...series: [string, readonly (number | null)[] | undefined][]): void => {
    const present = series.flatMap(([name, values]) => (values?.length === times.length ? [{ title: name, values }] : []));
    if (present.length) made.push([title, { times, series: present, unit, kind: "lines", isElapsed: true }]);
  };
  const percents = samples.cpu?.map((value) => (value === null ? null : value * 100));
  add("CPU", "percent", ["of one vCPU", percents]);
  add("Memory", "bytes", ["in use", samples.memory_bytes]);
  add("Network, since the start", "bytes", ["received", samples.received_bytes], ["sent", samples.sent_bytes]);
  return made;
}
