// Islands: elements that a script brings to life. A page works without them; what htmx brings later is found too.

/** Starts one island; returns what ends it when its element leaves the page. */
type Start = (element: HTMLElement) => (() => void) | void;

const starts = new Map<string, Start>();
const running = new WeakMap<Element, () => void>();
const started = new WeakSet<Element>();

/** Start this island on every element with `data-island="name"`, now and later. */
export function mount(name: string, start: Start): void {
  starts.set(name, start);
  startIn(document.body, name);
}

function startIn(root: Element, only?: string): void {
  const found = [...root.querySelectorAll<HTMLElement>("[data-island]")];
  if (root instanceof HTMLElement && root.dataset.island) found.unshift(root);
  for (const element of found) {
    const name = element.dataset.island ?? "";
    const start = starts.get(name);
    if (!start || (only && name !== only) || started.has(element)) continue;
    started.add(element);
    const stop = start(element);
    if (stop) running.set(element, stop);
  }
}

document.body.addEventListener("htmx:load", (event) => startIn(event.target as Element));
document.body.addEventListener("htmx:beforeCleanupElement", (event) => {
  const element = event.target as Element;
  running.get(element)?.();
  running.delete(element);
});

/** Return the headers with which a script's request acts in the project of its page. */
export function projectHeaders(): Record<string, string> {
  const project = document.body.dataset.project;
  return project ? { "Belljar-Project": project } : {};
}

/** Return what a failed response says to a person. */
export async function reasonOf(response: Response): Promise<string> {
  if (response.status === 401) return "your session has ended; sign in again in another tab, then try again";
  try {
    const problem = (await response.json()) as { detail?: unknown };
    if (typeof problem.detail === "string") return problem.detail;
  } catch {
    // No problem document: a proxy answered.
  }
  return `the server answered ${response.status}`;
}

/** Make an element with a class and a text; the text is never markup. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}
