// Runs the form of the playground without leaving the page: its output appears beside the script.
import { element, mount, projectHeaders, reasonOf } from "./islands";
import { LogPanel } from "./log_panel";

mount("playground", (form) => {
  if (!(form instanceof HTMLFormElement)) return;
  const output = document.querySelector<HTMLElement>("[data-playground-output]");
  const error = document.getElementById("playground-error");
  let panel: LogPanel | null = null;

  const run = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    if (!output || !error) return;
    const buttons = form.querySelectorAll("button");
    for (const each of buttons) each.disabled = true;
    error.hidden = true;
    try {
      const job = await submit(form);
      panel?.stop();
      const tools = links(output, job);
      panel = new LogPanel(output, `/v1/jobs/${job}/logs`, () => tools.stop.remove());
      if (output.getBoundingClientRect().top > innerHeight * 0.8) output.scrollIntoView({ behavior: "smooth" });
    } catch (problem) {
      error.textContent = problem instanceof Error ? problem.message : "it could not be sent";
      error.hidden = false;
      error.scrollIntoView({ block: "nearest" });
    } finally {
      for (const each of buttons) each.disabled = false;
    }
  };
  form.addEventListener("submit", run);
  const forget = examples(form);
  return () => {
    form.removeEventListener("submit", run);
    forget();
    panel?.stop();
  };
});

/** Send the form. Return the id of its job. Throws an error with what is wrong. */
async function submit(form: HTMLFormElement): Promise<string> {
  const body = new URLSearchParams();
  for (const [name, value] of new FormData(form)) body.append(name, String(value));
  const headers = { Accept: "application/json", ...projectHeaders() };
  const response = await fetch(form.action, { method: "POST", body, headers });
  if (!response.ok) throw new Error(await reasonOf(response));
  const { job_id: job } = (await response.json()) as { job_id: string };
  return job;
}

/** Put the links to a job into the panel of its output. */
function links(output: HTMLElement, job: string): { stop: HTMLElement } {
  const tools = output.querySelector(".log-tools");
  for (const each of tools?.querySelectorAll("[data-of-job]") ?? []) each.remove();
  const page = element("a", "button", "Open the job");
  page.href = `/jobs/${job}`;
  const stop = element("button", "danger", "Cancel");
  stop.type = "button";
  stop.addEventListener("click", () => {
    stop.disabled = true;
    void fetch(`/v1/jobs/${job}/cancel`, { method: "POST", headers: projectHeaders() });
  });
  for (const each of [page, stop]) each.dataset.ofJob = "";
  tools?.append(page, stop);
  return { stop };
}

/** Show the example of a language that is chosen, unless somebody has written something. */
function examples(form: HTMLFormElement): () => void {
  const code = form.querySelector<HTMLTextAreaElement>("textarea[name=code]");
  const language = form.querySelector<HTMLSelectElement>("select[name=language]");
  if (!code || !language) return () => undefined;
  const texts = new Map<string, string>();
  for (const each of form.querySelectorAll<HTMLTemplateElement>("template[data-example]")) {
    texts.set(each.dataset.example ?? "", each.content.textContent ?? "");
  }
  const isExample = (): boolean => !code.value.trim() || [...texts.values()].some((text) => text.trim() === code.value.trim());
  const choose = (): void => {
    if (!isExample()) return;
    code.value = texts.get(language.value) ?? "";
    code.dispatchEvent(new Event("belljar:replaced"));
  };
  language.addEventListener("change", choose);
  return () => language.removeEventListener("change", choose);
}
