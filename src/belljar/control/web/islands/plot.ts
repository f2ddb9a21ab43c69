// One plot over time with its legend, drawn by uPlot in the colours of the style sheet.
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { element } from "./islands";
import { UNITS, whole } from "./numbers";

const HEIGHT = 190;
const AXIS_WIDTH = 64;
/** Steps of an axis of bytes. */
const POWERS = Array.from({ length: 50 }, (_, power) => 2 ** power);

export interface Series {
  readonly title: string;
  readonly values: readonly (number | null)[];
}

export interface PlotData {
  /** Seconds since 1970, or since the beginning of what is shown. */
  readonly times: readonly number[];
  readonly series: readonly Series[];
  readonly unit: string;
  /** Bars are put on top of each other. */
  readonly kind: "lines" | "bars";
  readonly isElapsed?: boolean;
}

/** Draw into an element. Return what removes the plot. */
export function draw(into: HTMLElement, title: string, data: PlotData): () => void {
  const format = UNITS[data.unit] ?? whole;
  const heading = element("h3", "", title);
  const legend = element("ul", "plot-legend");
  const values = data.series.map(({ title: name }, index) => {
    const entry = element("li", `series-${index}`);
    const text = element("span", "", name);
    entry.append(text);
    legend.append(entry);
    return text;
  });
  const canvas = element("div");
  into.replaceChildren(heading, legend, canvas);

  let plot = make();
  function make(): uPlot {
    const colors = [...legend.children].map((each) => getComputedStyle(each).color);
    const text = getComputedStyle(heading).color;
    return new uPlot(
      options(data, canvas.clientWidth || 300, colors, text, format, (index) => {
        data.series.forEach(({ title: name, values: numbers }, number) => {
          const value = index === null ? null : numbers[index];
          const entry = values[number];
          if (entry) entry.textContent = value === null || value === undefined ? name : `${name} ${format(value)}`;
        });
      }),
      stacked(data),
      canvas,
    );
  }

  const redraw = (): void => {
    plot.destroy();
    plot = make();
  };
  const resized = new ResizeObserver(() => plot.setSize({ width: canvas.clientWidth || 300, height: HEIGHT }));
  resized.observe(canvas);
  document.addEventListener("belljar:theme", redraw);
  return () => {
    resized.disconnect();
    document.removeEventListener("belljar:theme", redraw);
    plot.destroy();
  };
}

/** Return the columns for uPlot: of bars, each has those below it added, and the highest is drawn first. */
function stacked(data: PlotData): uPlot.AlignedData {
  const times = [...data.times];
  if (data.kind === "lines") return [times, ...data.series.map((each) => [...each.values])];
  const sums: number[] = times.map(() => 0);
  const columns = data.series.map(({ values }) =>
    values.map((value, index) => (sums[index] = (sums[index] ?? 0) + (value ?? 0))),
  );
  return [times, ...columns.reverse()];
}

function options(
  data: PlotData,
  width: number,
  colors: readonly string[],
  text: string,
  format: (value: number) => string,
  onCursor: (index: number | null) => void,
): uPlot.Options {
  const isBars = data.kind === "bars";
  const order = isBars ? colors.slice(0, data.series.length).reverse() : colors;
  const bars = uPlot.paths.bars?.({ size: [0.75, 24], align: 1 });
  const axis = { stroke: text, grid: { stroke: faded(text), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    scales: {
      x: { time: !data.isElapsed },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] },
    },
    axes: [
      { ...axis, values: (_, splits) => splits.map(data.isElapsed ? (value) => `${value} s` : timeOf(data.times)) },
      {
        ...axis,
        size: AXIS_WIDTH,
        values: (_, splits) => splits.map((value) => format(value)),
        ...(data.unit === "bytes" ? { incrs: POWERS } : {}),
      },
    ],
    series: [
      {},
      ...data.series.map((_, index) => {
        const color = order[index] ?? text;
        const look = isBars ? { fill: color, width: 0, ...(bars ? { paths: bars } : {}) } : { width: 1.75, spanGaps: false };
        return { stroke: color, points: { show: !isBars && data.times.length < 2 }, ...look };
      }),
    ],
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)] },
  };
}

/** Return how times are written on the axis: with the day where there are several. */
function timeOf(times: readonly number[]): (seconds: number) => string {
  const isLong = (times.at(-1) ?? 0) - (times[0] ?? 0) > 2 * 86_400;
  const format = new Intl.DateTimeFormat("en-GB", isLong ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" });
  return (seconds) => format.format(seconds * 1000);
}

function faded(color: string): string {
  return color.replace(/^rgb\((.*)\)$/, "rgba($1, 0.14)");
}
