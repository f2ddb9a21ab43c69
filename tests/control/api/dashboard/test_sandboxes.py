"""Pages of sandboxes: the list, a new one, one with its processes and ports, and its files."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from belljar.control.projects.scopes import Role
from belljar.model.errors import DiskFull
from belljar.model.sandbox import ResumeProblem
from belljar.model.secrets import SecretValue
from control.api.sandbox_calls import OneSandbox, SandboxApi
from support.browser import Browser, fields_of
from support.registered_images import register
from support.sandbox_node import AgentNode
from support.served import served

pytestmark = pytest.mark.process

#: Text that others chose: tags, a right-to-left override, control characters, a character beyond the first plane.
HOSTILE = '<script>alert(1)</script>"\u202egpj.exe\x1b[31m\U0001f600'

VERBS = ("pause", "resume", "fork", "snapshot")


async def form(browser: Browser, page: str, **fields: str) -> dict[str, str]:
    given = fields_of(await browser.get(page))
    return {"form_token": given["form_token"], "in_project": given["in_project"], **fields}


def assert_harmless(page: str) -> None:
    assert "<script>alert" not in page and "\u202e" not in page and "\x1b" not in page
    assert " style=" not in page and "javascript:" not in page and " onerror" not in page


async def test_a_sandbox_is_created_found_extended_and_deleted(sandboxes: SandboxApi, owner: Browser) -> None:
    assert "belljar sandbox create python" in (await owner.get("/sandboxes")).text
    fields = fields_of(await owner.get("/sandboxes/new"))
    fields |= {
        "template": "python",
        "lifetime_minutes": "30",
        "idle_minutes": "",
        "labels": "team=red\r\n",
        "env": "A=b=c",
    }
    created = await owner.send("/sandboxes", fields)
    assert created.status_code == 303
    assert (await owner.send("/sandboxes", fields)).headers["location"] == created.headers["location"]
    path = created.headers["location"]
    public = (await sandboxes.http.get(f"/v1{path}")).json()
    assert (public["labels"], public["env"], public["lifetime_seconds"]) == ({"team": "red"}, {"A": "b=c"}, 1800)
    assert path in (await owner.get("/sandboxes?label=team")).text
    assert path not in (await owner.get("/sandboxes?label=team&status=ended")).text
    await sandboxes.http.post(f"/v1{path}/exec", json={"command": "true"})
    page = await owner.get(path)
    assert page.status_code == 200 and "running" in page.text and f"{path}/terminal" in page.text
    too_long = await owner.send(f"{path}/extend", await form(owner, path, lifetime_minutes="99999"))
    assert too_long.status_code == 422 and 'value="99999"' in too_long.text and 'aria-invalid="true"' in too_long.text
    assert (await owner.send(f"{path}/extend", await form(owner, path, lifetime_minutes="90"))).status_code == 303
    assert (await owner.send(f"{path}/delete", await form(owner, path))).status_code == 303
    ended = await owner.get(path)
    assert "deleted" in ended.text and "Delete sandbox" not in ended.text
    assert "hx-get" not in (await owner.get(f"{path}/live")).text
    rows = (await sandboxes.served.http.get("/v1/audit", params={"project": "tenant"})).json()["audit"]
    assert {"sandbox.create", "sandbox.extend", "sandbox.delete"} <= {row["action"] for row in rows}


async def test_a_refused_sandbox_is_shown_with_what_was_typed(sandboxes: SandboxApi, owner: Browser) -> None:
    given = fields_of(await owner.get("/sandboxes/new"))
    for wrong in (
        {"memory_mb": "1"},
        {"memory_mb": "much"},
        {"egress": "http://no"},
        {"lifetime_minutes": "0"},
        {"labels": "no value"},
        {"env": "1A=b"},
        {"secrets": "missing"},
    ):
        fields = {**given, "template": "python", "lifetime_minutes": "7", "egress": "none", **wrong}
        page = await owner.send("/sandboxes", fields)
        name, value = next(iter(wrong.items()))
        assert page.status_code == 422, wrong
        assert html.unescape(page.text).count(value) and f'id="{name}"' in page.text
        assert 'aria-invalid="true"' in page.text or 'role="alert"' in page.text, wrong
    assert (await sandboxes.http.get("/v1/sandboxes")).json()["sandboxes"] == []


async def test_hostile_text_is_text_on_every_page(sandboxes: SandboxApi, owner: Browser) -> None:
    box = await sandboxes.create(labels={"a": HOSTILE}, env={"B": HOSTILE})
    await box.exec("true #" + HOSTILE)
    folder = box.folder / f"{HOSTILE}\n".replace("/", "_")
    folder.mkdir()
    (folder / HOSTILE.replace("/", "_")).write_text(HOSTILE)
    (folder / os.fsdecode(b"\xff<i>")).write_text("x")
    (folder / "link").symlink_to(HOSTILE)
    place = f"/sandboxes/{box.id}/files/{quote(os.fsencode(folder))}"
    pages = ["/sandboxes", f"/sandboxes/{box.id}", f"/sandboxes/{box.id}/files/{quote(str(box.folder))}", place]
    for path in pages:
        page = await owner.get(path)
        assert page.status_code == 200, path
        assert_harmless(page.text)
    for name in os.listdir(folder):
        if name != "link":
            page = await owner.get(f"{place}/{quote(os.fsencode(name))}")
            shown, _, text = page.text.partition("<textarea")
            assert_harmless(shown)
            assert page.status_code == 200 and "<script>alert" not in text
            assert ("change the direction" in shown) == ("\u202e" in text)


async def test_a_program_is_signalled_and_ports_are_listed(box: OneSandbox, owner: Browser) -> None:
    path = f"/sandboxes/{box.id}"
    started = await box.exec("exec sleep 600", background=True)
    page = await owner.get(path)
    assert "sleep 600" in page.text and f"{path}/processes/{started['pid']}/signal" in page.text
    send = f"{path}/processes/{started['pid']}/signal"
    assert (await owner.send(send, await form(owner, path, signal="SIGNONE"))).status_code == 422
    assert (await owner.send(send, await form(owner, path, signal="SIGTERM"))).status_code == 303
    ended = (await box.http.get(f"{box.url}/processes/{started['pid']}?wait=30")).json()
    assert ended["signal"] == "SIGTERM" and "SIGTERM" in (await owner.get(path)).text
    assert (await owner.send(f"{path}/processes/999999/signal", await form(owner, path))).status_code == 404


async def test_files_are_made_changed_and_removed(box: OneSandbox, owner: Browser) -> None:
    base = f"/sandboxes/{box.id}"
    folder = f"{base}/files/{quote(str(box.folder))}"
    raw = quote(str(box.folder))
    made = await owner.send(f"{base}/file/create", await form(owner, folder, path=raw, name="a b.txt", kind="file"))
    assert made.status_code == 303 and (box.folder / "a b.txt").read_text() == ""
    again = await owner.send(f"{base}/file/create", await form(owner, folder, path=raw, name="a b.txt", kind="file"))
    assert again.status_code == 409 and 'role="alert"' in again.text and 'value="a b.txt"' in again.text
    await owner.send(f"{base}/file/create", await form(owner, folder, path=raw, name="deep/er", kind="folder"))
    assert (box.folder / "deep/er").is_dir()
    file = box.folder / "a b.txt"
    fields = fields_of(await owner.get(made.headers["location"]))
    saved = await owner.send(f"{base}/file/save", {**fields, "text": "one\r\ntwo\r\n"})
    assert saved.status_code == 303 and file.read_bytes() == b"one\ntwo\n"
    file.write_text("others\n")
    conflict = await owner.send(f"{base}/file/save", {**fields, "text": "mine & <more>"})
    assert (
        conflict.status_code == 409
        and "mine &amp; &lt;more&gt;" in conflict.text
        and 'name="overwrite"' in conflict.text
    )
    assert file.read_text() == "others\n"
    assert (await owner.send(f"{base}/file/save", {**fields, "text": "mine", "overwrite": "yes"})).status_code == 303
    assert file.read_text() == "mine"
    file.write_bytes(b"a\r\nb\r\n")
    fields = fields_of(await owner.get(made.headers["location"]))
    await owner.send(f"{base}/file/save", {**fields, "text": "c\r\nd\r\n"})
    assert file.read_bytes() == b"c\r\nd\r\n"
    removed = await owner.send(f"{base}/file/remove", await form(owner, folder, path=f"{raw}/deep"))
    assert removed.status_code == 303 and not (box.folder / "deep").exists()


async def test_what_is_no_small_text_is_downloaded_never_shown(box: OneSandbox, owner: Browser) -> None:
    contents = {
        "big": b"x" * (256 * 1024 + 1),
        "binary": b"\0\1\2",
        "latin": b"\xe9",
        "mixed": b"a\r\nb\n",
        "page.html": b"<script>alert(1)</script>",
    }
    for name, content in contents.items():
        (box.folder / name).write_bytes(content)
        page = await owner.get(f"/sandboxes/{box.id}/files/{quote(str(box.folder))}/{name}")
        assert page.status_code == 200 and ("<textarea" in page.text) == (name == "page.html"), name
        assert "<script>alert" not in page.text
        file = await owner.get(f"/v1/sandboxes/{box.id}/files/{quote(str(box.folder))}/{name}")
        assert file.content == content and file.headers["content-disposition"].startswith("attachment")
        assert file.headers["content-type"] == "application/octet-stream"
        assert file.headers["x-content-type-options"] == "nosniff"
    assert (await owner.get(f"/sandboxes/{box.id}/files/none")).status_code == 404
    assert (await owner.get(f"/sandboxes/{box.id}/files//dev/null")).status_code == 200


async def test_a_sandbox_is_paused_and_resumed_and_its_pages_say_what_it_is(
    sandboxes: SandboxApi, owner: Browser
) -> None:
    box = await sandboxes.create()
    path = f"/sandboxes/{box.id}"
    await box.exec("echo $$ > pid; exec sleep 600", background=True)
    page = (await owner.get(path)).text
    assert f'action="{path}/pause"' in page and f'action="{path}/resume"' not in page
    sandboxes.node.freeze_error = DiskFull("no room for its memory")
    refused = await owner.send(f"{path}/pause", await form(owner, path))
    assert refused.status_code == 507 and 'role="alert"' in refused.text and f'action="{path}/pause"' in refused.text
    sandboxes.node.freeze_error = None
    assert (await owner.send(f"{path}/pause", await form(owner, path))).status_code == 303

    page = (await owner.get(path)).text
    assert f'action="{path}/resume"' in page and f'action="{path}/pause"' not in page
    assert "Lifetime left" in page and "5.0 MiB" in page and f"{path}/extend" not in page
    assert "What was kept of it is deleted" in page
    for tab in ("terminal", "files/"):
        shown = (await owner.get(f"{path}/{tab}")).text
        assert f'action="{path}/resume"' in shown and "data-island" not in shown
    assert "paused," in (await owner.get("/sandboxes?status=paused")).text

    sandboxes.node.resume_problem = ResumeProblem(code="no_room", message=f"{HOSTILE} needs 256 MB")
    assert (await owner.send(f"{path}/resume", await form(owner, path))).status_code == 303
    page = (await owner.get(path)).text
    assert "stays paused" in page and "needs 256 MB" in page
    assert_harmless(page)
    sandboxes.node.resume_problem = None
    # A page that was made in another status is loaded again; the same one is not.
    assert (await owner.send(f"{path}/resume", await form(owner, path))).status_code == 303
    stale = await owner.get(f"{path}/live?shown=paused")
    assert (stale.status_code, stale.headers["hx-redirect"]) == (204, path)
    assert "hx-redirect" not in (await owner.get(f"{path}/live?shown=running")).headers
    assert "sleep 600" in (await owner.get(path)).text
    rows = (await sandboxes.served.http.get("/v1/audit", params={"project": "tenant"})).json()["audit"]
    assert {"sandbox.pause", "sandbox.resume"} <= {row["action"] for row in rows if row["outcome"] == "succeeded"}


async def test_copies_are_made_listed_and_deleted(sandboxes: SandboxApi, owner: Browser) -> None:
    await sandboxes.served.services.secrets.set("tenant", "TOKEN", SecretValue(b"hidden"))
    box = await sandboxes.create(secrets=["TOKEN"], labels={"a": HOSTILE})
    path = f"/sandboxes/{box.id}"
    for verb in ("fork", "snapshot"):
        refused = await owner.send(f"{path}/{verb}", await form(owner, path, count="1"))
        copies = refused.text.partition('id="copies"')[2]
        assert refused.status_code == 409 and "TOKEN" in copies and 'role="alert"' in copies
    for count in ("0", "x", "1000"):
        refused = await owner.send(f"{path}/fork", await form(owner, path, count=count, keep_secrets="yes"))
        assert refused.status_code == 422 and f'value="{count}"' in refused.text and 'id="count-hint"' in refused.text
    await sandboxes.served.http.put("/v1/projects/tenant/quotas", json={"max_sandboxes": 3})
    refused = await owner.send(f"{path}/fork", await form(owner, path, count="3", keep_secrets="yes"))
    assert refused.status_code == 429 and "maximum is 3" in refused.text.partition('id="copies"')[2]
    one = await owner.send(f"{path}/fork", await form(owner, path, count="1", keep_secrets="yes"))
    assert one.status_code == 303 and f'href="{path}"' in (await owner.get(one.headers["location"])).text

    assert "No snapshots yet" in (await owner.get("/snapshots")).text
    taken = await owner.send(f"{path}/snapshot", await form(owner, path, keep_secrets="yes"))
    snapshot = taken.headers["location"].rpartition("#")[2]
    page = (await owner.get("/snapshots")).text
    assert_harmless(page)
    assert f'id="{snapshot}"' in page and f"/sandboxes/new?snapshot={snapshot}" in page
    fields = fields_of(await owner.get(f"/sandboxes/new?snapshot={snapshot}"))
    assert fields["snapshot"] == snapshot and "template" not in fields
    wrong = await owner.send("/sandboxes", {**fields, "lifetime_minutes": "a while"})
    assert wrong.status_code == 422 and "a while" in wrong.text and f'value="{snapshot}"' in wrong.text
    made = await owner.send("/sandboxes", {**fields, "lifetime_minutes": "7", "env": "B=c"})
    public = (await sandboxes.http.get(f"/v1{made.headers['location']}")).json()
    assert (public["parent"], public["lifetime_seconds"], public["env"]) == (snapshot, 420, {"B": "c"})
    full = await owner.send("/sandboxes", {**fields, "idempotency_key": "another"})
    assert full.status_code == 429 and "maximum is 3" in full.text and f'value="{snapshot}"' in full.text

    delete = f"/snapshots/{snapshot}/delete"
    assert (await owner.send(delete, await form(owner, "/sandboxes/new"))).status_code == 303
    assert (await owner.send(delete, await form(owner, "/sandboxes/new"))).status_code == 404
    assert (await owner.get(f"/sandboxes/new?snapshot={snapshot}")).status_code == 404
    gone = await owner.send("/sandboxes", {**fields, "idempotency_key": "a third"})
    assert gone.status_code == 404 and "no snapshot" in gone.text and 'name="lifetime_minutes"' in gone.text


async def test_another_projects_sandbox_does_not_exist(
    box: OneSandbox, operator: Browser, sandboxes: SandboxApi
) -> None:
    for path in ("", "/live", "/terminal", "/files", "/files/"):
        assert (await operator.get(f"/sandboxes/{box.id}{path}")).status_code == 404, path
    snapshot = (await sandboxes.http.post(f"{box.url}/snapshot")).json()["id"]
    assert (await operator.get(f"/sandboxes/new?snapshot={snapshot}")).status_code == 404
    for path in (f"/snapshots/{snapshot}/delete", *(f"/sandboxes/{box.id}/{verb}" for verb in VERBS)):
        assert (await operator.send(path, await form(operator, "/sandboxes/new", count="1"))).status_code == 404, path
    assert (await sandboxes.http.get(f"/v1/snapshots/{snapshot}")).status_code == 200


async def test_a_port_gets_a_link_for_a_browser_where_ports_have_host_names(tmp_path: Path) -> None:
    register(tmp_path, "python")
    folder = tmp_path / "box"
    folder.mkdir()
    async with served(tmp_path, sandbox_domain="boxes.example") as api, Browser(api) as browser:
        _, secret = await api.services.keys.create("tenant", "browser", role=Role.OWNER)
        await browser.sign_in(secret)
        async with AgentNode(api.services.sandbox_queue.link, folder).running(), api.caller(secret) as caller:
            box = (await caller.post("/v1/sandboxes", json={})).json()["id"]
            path = f"/sandboxes/{box}"
            page = await browser.send(f"{path}/ports/8000/link", await form(browser, path))
            assert page.status_code == 201 and page.headers["cache-control"] == "no-store"
            link = re.search(r'href="(http://8000-sb-[a-z0-9]+\.boxes\.example[^"]*)"', page.text)
            assert link is not None and 'rel="noopener noreferrer"' in page.text
            tokens = (await caller.get(f"/v1{path}/ports/8000/tokens")).json()["tokens"]
            assert len(tokens) == 1
            assert link[1] not in (await browser.get(path)).text
