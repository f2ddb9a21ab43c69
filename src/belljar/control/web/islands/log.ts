// The output of a job on its page.
import { mount } from "./islands";
import { LogPanel } from "./log_panel";

mount("log", (element) => {
  const panel = new LogPanel(element, element.dataset.url ?? "", () => undefined);
  return () => panel.stop();
});
