// Shows a log: only the rows that are seen are in the page, so its cost does not grow with the log.
import type { Span } from "./ansi";
import { element } from "./islands";
import { LogLines, type Row } from "./log_lines";

const ROW_PIXELS = 20;
/** Rows above and below those that are seen. */
const MARGIN_ROWS = 12;
/** With fewer, the view is as high as they are. */
const FEW_ROWS = 60;

export class LogView {
  readonly lines = new LogLines();
  readonly view = element("div", "log-view");
  /** Called when the view begins or ceases to follow the end. */
  onFollow: (isFollowing: boolean) => void = () => undefined;
  #space = element("div", "log-space");
  #rows = element("div", "log-rows");
  #isFollowing = true;
  #isScheduled = false;
  #found: ReadonlySet<number> = new Set();
  #current = -1;
  #height = 0;
  #observer = new ResizeObserver(() => this.changed());

  constructor() {
    this.view.tabIndex = 0;
    this.view.setAttribute("role", "log");
    this.view.setAttribute("aria-live", "off");
    this.view.setAttribute("aria-label", "Output");
    this.view.append(this.#space);
    this.#space.append(this.#rows);
    this.view.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#observer.observe(this.view);
  }

  get isFollowing(): boolean {
    return this.#isFollowing;
  }

  follow(isFollowing: boolean): void {
    if (this.#isFollowing === isFollowing) return;
    this.#isFollowing = isFollowing;
    this.onFollow(isFollowing);
    this.changed();
  }

  /** Mark rows by their numbers since the beginning, one of them as the current one; `isShown` scrolls to it. */
  mark(found: ReadonlySet<number>, current: number, isShown: boolean): void {
    this.#found = found;
    this.#current = current;
    if (isShown) {
      this.follow(false);
      const top = (current - this.lines.dropped) * ROW_PIXELS;
      this.view.scrollTop = top - this.view.clientHeight / 2;
    }
    this.changed();
  }

  /** Draw with the next frame. */
  changed(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      this.#draw();
    });
  }

  /** Keep what is seen in place when the oldest rows are dropped. */
  dropped(count: number): void {
    if (!this.#isFollowing) this.view.scrollTop -= count * ROW_PIXELS;
  }

  stop(): void {
    this.#observer.disconnect();
  }

  #scrolled(): void {
    const rest = this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight;
    const isAtEnd = rest < ROW_PIXELS * 1.5;
    if (isAtEnd !== this.#isFollowing) {
      this.#isFollowing = isAtEnd;
      this.onFollow(isAtEnd);
    }
    this.changed();
  }

  #draw(): void {
    const { rows, dropped } = this.lines;
    this.#space.style.height = `${rows.length * ROW_PIXELS}px`;
    if (rows.length < FEW_ROWS || this.#height < FEW_ROWS) {
      this.#height = Math.min(rows.length, FEW_ROWS);
      this.view.style.setProperty("--rows", String(this.#height));
    }
    if (this.#isFollowing) this.view.scrollTop = this.view.scrollHeight;
    const first = Math.max(0, Math.floor(this.view.scrollTop / ROW_PIXELS) - MARGIN_ROWS);
    const seen = Math.ceil(this.view.clientHeight / ROW_PIXELS) + 2 * MARGIN_ROWS;
    const drawn = rows.slice(first, first + seen);
    this.#rows.style.transform = `translateY(${first * ROW_PIXELS}px)`;
    this.#rows.replaceChildren(...drawn.map((row, index) => this.#row(row, dropped + first + index)));
  }

  #row(row: Row, number: number): HTMLElement {
    const made = element("div", row.stream === "stdout" ? "" : row.stream);
    if (this.#found.has(number)) made.classList.add("found");
    if (number === this.#current) made.classList.add("current");
    if (row.spans.length === 1 && row.spans[0]?.style.classes === "" && !row.spans[0].style.color) {
      made.textContent = row.spans[0].text;
    } else made.append(...row.spans.map(spanOf));
    return made;
  }
}

function spanOf({ text, style }: Span): HTMLElement {
  const made = element("span", style.classes, text);
  if (style.color) made.style.color = style.color;
  if (style.background) made.style.backgroundColor = style.background;
  return made;
}
