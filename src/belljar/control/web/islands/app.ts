// Every page: htmx for parts that change, live refresh, the choice of colours, and selects that send their form.
import htmx from "htmx.org";
import { element, projectHeaders } from "./islands";

const MILLISECONDS = 1000;
const YEAR_SECONDS = 31_536_000;

interface RequestDetail {
  readonly elt: Element;
  readonly headers: Record<string, string>;
  readonly successful?: boolean;
  readonly xhr: XMLHttpRequest;
  shouldSwap: boolean;
}

document.documentElement.classList.add("scripted");
for (const each of document.querySelectorAll<HTMLElement>("[data-with-script]")) each.hidden = false;

// A request that hangs counts as failed.
htmx.config.timeout = 15 * MILLISECONDS;

// Parts are of the project of their page, whatever another tab has switched to.
document.body.addEventListener("htmx:configRequest", (event) => {
  Object.assign((event as CustomEvent<RequestDetail>).detail.headers, projectHeaders());
});

// A page that cannot be refreshed says so until it can.
const stale = element("p", "notice");
stale.setAttribute("role", "status");
document.body.addEventListener("htmx:afterRequest", (event) => {
  const { successful, xhr } = (event as CustomEvent<RequestDetail>).detail;
  if (successful) stale.remove();
  else {
    const reason = xhr.status ? `the server answered ${xhr.status}` : "the server cannot be reached";
    stale.textContent = `This page is not up to date: ${reason}. It is tried again; reload the page if this stays.`;
    document.querySelector("main .heading")?.after(stale);
  }
});

// A swap between the press and the release of a button would lose the click.
const isPressed = (): boolean => document.querySelector("main:active") !== null;
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const { detail } = event as CustomEvent<RequestDetail>;
  if (isPressed() && detail.elt.hasAttribute("data-refresh")) detail.shouldSwap = false;
});

// Refresh: each element with data-refresh="SECONDS" while the page is seen and nobody works inside it, or inside those that
// are swapped with it.
const isInUse = (part: Element): boolean =>
  part.contains(document.activeElement) || part.querySelector("details[open]") !== null;
const refreshed = new WeakMap<Element, number>();
setInterval(() => {
  if (document.visibilityState !== "visible") return;
  const now = Date.now();
  for (const each of document.querySelectorAll<HTMLElement>("[data-refresh]")) {
    const last = refreshed.get(each) ?? now;
    if (!refreshed.has(each)) refreshed.set(each, now);
    if (now - last < Number(each.dataset.refresh) * MILLISECONDS || isPressed()) continue;
    if ([each, ...document.querySelectorAll(each.dataset.refreshWith ?? ":not(*)")].some(isInUse)) continue;
    refreshed.set(each, now);
    htmx.trigger(each, "refresh", {});
  }
}, MILLISECONDS / 2);

// Colours: as the browser prefers, until somebody chooses.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
for (const toggle of document.querySelectorAll<HTMLElement>("[data-theme-toggle]")) {
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
    const chosen = isDark ? "light" : "dark";
    root.dataset.theme = chosen;
    document.querySelector('meta[name="color-scheme"]')?.setAttribute("content", chosen);
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `belljar_theme=${chosen}; Path=/; Max-Age=${YEAR_SECONDS}; SameSite=Lax${secure}`;
    document.dispatchEvent(new Event("belljar:theme"));
  });
}
prefersDark.addEventListener("change", () => document.dispatchEvent(new Event("belljar:theme")));

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field instanceof HTMLSelectElement && field.hasAttribute("data-submit")) field.form?.requestSubmit();
});
