// Uploads files into a folder of a sandbox, one after the other, with their progress.
import { element, mount, projectHeaders } from "./islands";

async function upload(files: FileList | File[], root: HTMLElement): Promise<void> {
  const list = root.querySelector<HTMLElement>("[data-upload-list]");
  const folder = root.dataset.url;
  if (list === null || folder === undefined) return;
  let failed = 0;
  for (const file of Array.from(files)) failed += (await send(file, folder, list)) ? 0 : 1;
  if (failed === 0) location.reload();
}

function send(file: File, folder: string, list: HTMLElement): Promise<boolean> {
  const row = list.appendChild(element("li"));
  const progress = element("progress");
  progress.setAttribute("aria-label", `Upload of ${file.name}`);
  const state = element("span");
  row.append(element("bdi", "", file.name), progress, state);
  const address = `${folder}${folder.endsWith("/") ? "" : "/"}${encodeURIComponent(file.name)}`;
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address);
    for (const [name, value] of Object.entries(projectHeaders())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => {
      progress.max = event.total;
      progress.value = event.loaded;
    };
    request.onloadend = () => {
      progress.remove();
      const isStored = request.status === 201;
      state.textContent = isStored ? "stored" : problemOf(request);
      state.className = isStored ? "muted" : "error";
      resolve(isStored);
    };
    request.send(file);
  });
}

function problemOf(request: XMLHttpRequest): string {
  try {
    return String((JSON.parse(request.responseText) as { detail?: unknown }).detail);
  } catch {
    return request.status === 0 ? "the connection broke off; try again" : `the server answered ${request.status}`;
  }
}

mount("upload", (root) => {
  const input = root.querySelector<HTMLInputElement>("input[type=file]");
  input?.addEventListener("change", () => void upload(input.files ?? [], root));
  root.addEventListener("dragover", (event) => {
    event.preventDefault();
    root.classList.add("dropping");
  });
  root.addEventListener("dragleave", () => root.classList.remove("dropping"));
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("dropping");
    if (event.dataTransfer) void upload(event.dataTransfer.files, root);
  });
});
