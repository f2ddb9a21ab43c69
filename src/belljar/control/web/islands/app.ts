// Every page: htmx for parts that change, live refresh, the choice of colours, and selects that send their form.
import htmx from "htmx.org";

const MILLISECONDS = 1000;
const YEAR_SECONDS = 31_536_000;

document.documentElement.classList.add("scripted");
for (const each of document.querySelectorAll<HTMLElement>("[data-with-script]")) each.hidden = false;

// Refresh: each element with data-refresh="SECONDS" while the page is seen and nobody works inside it.
const refreshed = new WeakMap<Element, number>();
setInterval(() => {
  if (document.visibilityState !== "visible") return;
  const now = Date.now();
  for (const each of document.querySelectorAll<HTMLElement>("[data-refresh]")) {
    const last = refreshed.get(each) ?? now;
    if (!refreshed.has(each)) refreshed.set(each, now);
    const isInUse = each.contains(document.activeElement) || each.querySelector("details[open]") !== null;
    if (now - last < Number(each.dataset.refresh) * MILLISECONDS || isInUse) continue;
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
