"""The pages of the dashboard as a browser without scripts gets them: roles, forms, projects, hostile text, files."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.projects.scopes import Role, Scope
from belljar.control.web.asset_files import AssetFiles, files
from belljar.model.job import Artifact, JobError, NetworkUse, Refusal
from belljar.model.states import Status
from control.api.test_logs import Running
from support.browser import Browser, fields_of
from support.registered_images import register
from support.served import Served, served

PAGES = ("/", "/?span=7d", "/jobs", "/playground", "/account")
#: What a tenant or a guest may try: markup, an attribute's end, controls, a right-to-left override.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202etxt.exe"


@pytest.fixture
async def owner(api: Served) -> AsyncIterator[Browser]:
    async with Browser(api) as browser:
        _, secret = await api.services.keys.create("shop", "test", role=Role.OWNER)
        assert (await browser.sign_in(secret)).headers["location"] == "/"
        yield browser


@pytest.fixture
async def operator(api: Served) -> AsyncIterator[Browser]:
    async with Browser(api) as browser:
        await browser.sign_in(str(api.http.headers["authorization"]).removeprefix("Bearer "))
        yield browser


async def submitted(browser: Browser, **fields: str) -> str:
    """Send the form of the playground; return the id of its job."""
    hidden = fields_of(await browser.get("/playground"))
    form = {"form_token": hidden["form_token"], "in_project": hidden["in_project"], "language": "python"}
    response = await browser.send("/playground", {**form, "code": "print(1)\n", **fields})
    assert response.status_code == 303, response.text
    return str(response.headers["location"]).removeprefix("/jobs/")


async def test_every_page_has_one_heading_its_place_in_the_navigation_and_no_inline_code(owner: Browser) -> None:
    job = await submitted(owner)
    for path in (*PAGES, f"/jobs/{job}", f"/playground?job={job}"):
        page = await owner.get(path)
        assert page.status_code == 200, path
        assert page.text.count("<h1") == 1, path
        assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son\w+=|javascript:", page.text), path
        assert page.headers["cache-control"] == "no-store"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        ids = re.findall(r'\sid="([^"]*)"', page.text)
        assert len(ids) == len(set(ids)), path
    assert 'href="/jobs" aria-current="page"' in (await owner.get("/jobs")).text
    assert 'href="/jobs" aria-current="true"' in (await owner.get(f"/jobs/{job}")).text


async def test_an_empty_project_shows_what_to_do_next(owner: Browser) -> None:
    assert "belljar submit hello.py" in (await owner.get("/")).text
    assert "belljar submit hello.py" in (await owner.get("/jobs")).text
    assert "No job matches" in (await owner.get("/jobs?status=failed")).text


async def test_a_key_that_runs_jobs_and_may_not_read_them_gets_none_of_their_fields(
    owner: Browser, api: Served
) -> None:
    job = await submitted(owner, code="print('ours')\n", env="PLACE=kitchen", stdin="input")
    both = {Scope.JOBS_READ, Scope.SCRIPTS_READ}
    some: list[set[Scope]] = [set(), {Scope.JOBS_READ}, {Scope.SCRIPTS_READ}, both]
    for scopes in some:
        _, secret = await api.services.keys.create("shop", "test", scopes=[Scope.JOBS_RUN, *scopes])
        async with Browser(api) as runner:
            await runner.sign_in(secret)
            assert (await runner.get("/playground")).status_code == 200
            page = await runner.get(f"/playground?job={job}")
            assert page.status_code == (200 if scopes == both else 403), scopes
            assert ("ours" in page.text, "kitchen" in page.text) == (scopes == both, scopes == both), scopes


async def test_a_script_is_run_and_run_again_with_changes(owner: Browser, api: Served) -> None:
    code = "import sys\nprint('<b>', sys.argv)\n"
    first = await submitted(owner, code=code, args="a\r\nb c", stdin="input", memory_mb="300")
    again = html.unescape((await owner.get(f"/playground?job={first}")).text)
    assert code in again and "a\nb c</textarea>" in again and "input</textarea>" in again and 'value="300"' in again
    second = await submitted(owner, code=code, args="c")
    jobs = {job.id: job for job in (await api.services.jobs.list("shop"))[0]}
    assert (jobs[first].args, jobs[second].args) == (("a", "b c"), ("c",))
    assert jobs[first].script_id == jobs[second].script_id
    assert (await owner.get("/jobs")).text.count("/jobs/job_") == 2


async def test_what_is_wrong_with_a_form_is_shown_with_what_was_entered(owner: Browser) -> None:
    hidden = fields_of(await owner.get("/playground"))
    form = {"form_token": hidden["form_token"], "code": "my code", "language": "python", "memory_mb": "much"}
    page = await owner.send("/playground", form)
    assert page.status_code == 422
    assert "memory_mb: &#39;much&#39; is no number" in page.text
    assert "my code</textarea>" in page.text and 'value="much"' in page.text
    # A script of the page gets a problem document instead, and an id.
    problem = await owner.send("/playground", form, Accept="application/json")
    assert problem.json()["code"] == "invalid_option"
    started = await owner.send("/playground", {**form, "memory_mb": ""}, Accept="application/json")
    assert started.status_code == 202 and started.json()["job_id"].startswith("job_")


async def test_a_form_without_its_token_or_of_another_project_changes_nothing(owner: Browser, api: Served) -> None:
    token = await owner.form_token()
    form = {"code": "print(1)", "language": "python"}
    assert (await owner.send("/playground", form)).status_code == 403
    page = await owner.send("/playground", {**form, "form_token": token, "in_project": "bank"})
    assert page.status_code == 409 and "opened in the project" in page.text
    other = await owner.send("/playground", {**form, "form_token": token}, Sec_Fetch_Site="cross-site")
    assert other.status_code == 403
    assert (await api.services.jobs.list("shop"))[0] == []


async def test_a_viewer_sees_jobs_and_nothing_to_run_them_with(owner: Browser, api: Served) -> None:
    job = await submitted(owner)
    async with Browser(api) as viewer:
        await viewer.sign_in_as(api, "eve@example.org", {"shop": Role.VIEWER})
        for path in ("/", "/jobs", f"/jobs/{job}"):
            page = await viewer.get(path)
            assert page.status_code == 200
            assert "playground" not in page.text and "/cancel" not in page.text, path
        assert (await viewer.get("/playground")).status_code == 403
        form = {"form_token": await viewer.form_token()}
        assert (await viewer.send(f"/jobs/{job}/cancel", form)).status_code == 403
        assert (await viewer.send("/playground", {**form, "code": "1", "language": "python"})).status_code == 403
        assert "Nodes" not in (await viewer.get("/")).text


async def test_a_key_without_jobs_is_led_to_its_account(api: Served) -> None:
    _, secret = await api.services.keys.create("shop", "test", scopes=frozenset({Scope.SANDBOXES}))
    async with Browser(api) as browser:
        await browser.sign_in(secret)
        assert (await browser.get("/")).headers["location"] == "/account"
        assert "Jobs</a>" not in (await browser.get("/account")).text


async def test_an_operator_switches_projects_and_a_project_that_is_gone_is_passed_over(
    operator: Browser, owner: Browser, api: Served
) -> None:
    job = await submitted(owner)
    assert job not in (await operator.get("/jobs")).text
    assert (await operator.get(f"/jobs/{job}")).status_code == 404
    form = {"form_token": await operator.form_token(), "project": "shop", "next": "/jobs"}
    response = await operator.send("/account/project", form)
    assert (response.status_code, response.headers["location"]) == (303, "/jobs")
    assert "HttpOnly" in response.headers["set-cookie"]
    assert job in (await operator.get("/jobs")).text
    assert (await operator.http.get("/v1/session")).json()["project"] == "shop"
    unknown = await operator.send("/account/project", {**form, "project": "nowhere"})
    assert unknown.status_code == 404
    operator.http.cookies.set("belljar_project", "nowhere")
    assert (await operator.http.get("/v1/session")).json()["project"] == "default"


async def test_the_project_of_a_cookie_gives_nobody_more_than_they_have(owner: Browser, api: Served) -> None:
    await api.services.projects.create("bank")
    owner.http.cookies.set("belljar_project", "bank")
    session = (await owner.http.get("/v1/session")).json()
    assert (session["project"], session["operator"]) == ("shop", False)
    form = {"form_token": session["session"]["form_token"], "project": "bank"}
    assert (await owner.send("/account/project", form)).status_code == 404


async def test_a_person_acts_in_the_project_that_they_chose_with_their_role_there(api: Served) -> None:
    async with Browser(api) as browser:
        await browser.sign_in_as(api, "ada@example.org", {"art": Role.OWNER, "bank": Role.VIEWER})
        assert "/playground" in (await browser.get("/")).text
        await browser.send("/account/project", {"form_token": await browser.form_token(), "project": "bank"})
        page = await browser.get("/")
        assert 'data-project="bank"' in page.text and "/playground" not in page.text


async def test_nothing_of_a_hostile_job_is_markup_or_hidden(owner: Browser, api: Served) -> None:
    await submitted(owner, args=HOSTILE.replace("\x1b", ""), env=f"X={HOSTILE}", labels=f"team={HOSTILE}")
    job = await api.begin()
    await api.end(
        job,
        Status.FAILED,
        exit_code=1,
        error=JobError(code="x", message=HOSTILE),
        kept_artifacts=(Artifact(path=f"{HOSTILE}\n/x.html", size_bytes=3),),
        network=NetworkUse(refused_count=1, refused=(Refusal(name=HOSTILE, protocol=HOSTILE),)),
    )
    for path in ("/", "/jobs", f"/jobs/{job.id}", f"/playground?job={job.id}"):
        page = (await owner.get(path)).text
        assert "<script>alert" not in page and "<img src=x" not in page, path
        if path != f"/playground?job={job.id}":  # there it is what a field holds
            assert "\u202e" not in page and "\x1b" not in page, path
    assert "⟨U+202E⟩" in (await owner.get(f"/jobs/{job.id}")).text


async def test_parts_of_an_open_page_are_sent_alone(owner: Browser, api: Served) -> None:
    job = await submitted(owner)
    part = await owner.get(f"/jobs/{job}", HX_Request="true")
    assert "<html" not in part.text and 'id="job-status"' in part.text
    assert part.text.count('hx-swap-oob="true"') == 2 and 'data-refresh="2"' in part.text
    await api.end(await api.begin())
    ended = await owner.get(f"/jobs/{job}", HX_Request="true")
    assert "data-refresh" not in ended.text and "succeeded" in ended.text
    assert "<html" not in (await owner.get("/jobs?status=failed", HX_Request="true")).text
    restored = await owner.get("/jobs", HX_Request="true", HX_History_Restore_Request="true")
    assert "<html" in restored.text


async def test_a_page_whose_session_has_ended_goes_to_the_sign_in_as_a_whole(api: Served) -> None:
    async with Browser(api) as browser:
        for page, next_page in (("http://127.0.0.1:8080/jobs?status=failed", "/jobs%3Fstatus%3Dfailed"), ("", "/")):
            answer = await browser.get("/jobs", HX_Request="true", HX_Current_URL=page)
            assert (answer.status_code, answer.text) == (401, "")
            assert answer.headers["hx-redirect"] == f"/signin?next={next_page}"


async def test_a_queued_job_says_why_it_waits(owner: Browser, api: Served) -> None:
    job = await submitted(owner)
    assert "Waits: no worker is connected" in (await owner.get(f"/jobs/{job}")).text
    assert "no worker is connected" in (await owner.get("/")).text
    form = {"form_token": await owner.form_token(), "in_project": "shop"}
    assert (await owner.send(f"/jobs/{job}/cancel", form)).headers["location"] == f"/jobs/{job}"
    page = (await owner.get(f"/jobs/{job}")).text
    assert "Waits" not in page and "cancelled" in page


async def test_the_overview_counts_what_ended(owner: Browser, api: Served) -> None:
    for status in (Status.SUCCEEDED, Status.FAILED):
        await submitted(owner)
        await api.end(await api.begin(), status, exit_code=0 if status is Status.SUCCEEDED else 3)
    page = (await owner.get("/")).text
    assert re.search(r"<dt>Ended, 1 hour</dt><dd>2</dd>", page)
    assert re.search(r"<dt>Failed, 1 hour</dt><dd class=\"bad\">1 <small>50.0 %</small></dd>", page)
    assert "exit code 3" in page and page.count("<tr><td><time") == 60
    assert (await owner.get("/?span=nonsense")).status_code == 200


async def test_filters_of_the_list_stay_in_its_links(owner: Browser) -> None:
    for _ in range(3):
        await submitted(owner, labels="team=a&b")
    page = (await owner.get("/jobs?label=team%3Da%26b&status=queued")).text
    assert page.count("/jobs/job_") == 3
    assert 'hx-get="/jobs?status=queued&amp;label=team%3Da%26b"' in page
    job = re.findall(r"/jobs/(job_\w+)", page)[1]
    assert (await owner.get(f"/jobs?q={job}")).headers["location"] == f"/jobs/{job}"
    older = (await owner.get(f"/jobs?cursor={job}")).text
    assert older.count("/jobs/job_") == 1 and "data-refresh" not in older


async def test_with_auth_off_pages_work_without_a_session(tmp_path: Path) -> None:
    register(tmp_path, "python")
    async with served(tmp_path, auth="off") as api, Browser(api) as browser:
        assert 'href="/playground"' in (await browser.get("/")).text
        job = await submitted(browser)
        assert (await browser.get(f"/jobs/{job}")).status_code == 200
        refused = await browser.send("/playground", {"code": "1", "language": "python"}, Sec_Fetch_Site="cross-site")
        assert refused.status_code == 403


async def test_files_of_pages_are_cached_for_ever_and_compressed(api: Served) -> None:
    style = str(files.url("style.css"))
    async with api.caller() as anyone:
        response = await anyone.get(style, headers={"Accept-Encoding": "gzip"})
        assert response.headers["content-type"].startswith("text/css")
        assert response.headers["content-encoding"] == "gzip"
        assert "immutable" in response.headers["cache-control"] and "Accept-Encoding" in response.headers["vary"]
        plain = await anyone.get(style, headers={"Accept-Encoding": "gzip;q=0"})
        assert "content-encoding" not in plain.headers and plain.text == response.text
        for path in ("/static/style.css", "/static/..%2fpages.py", "/static/manifest.json", "/static/"):
            assert (await anyone.get(path)).status_code == 404, path
        assert (await anyone.post(style)).status_code == 405


def test_files_without_a_bundle_and_with_one(tmp_path: Path) -> None:
    bare = AssetFiles(bundle=tmp_path)
    assert not bare.has_scripts and bare.url("app.js") is None and bare.url("style.css")
    for name, content in {"app-X.js": "1", "app-X.js.br": "br", "part-Y.js": "2", "app-Z.css": "3"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "manifest.json").write_text('{"app.js": "app-X.js", "app.css": "app-Z.css"}')
    built = AssetFiles(bundle=tmp_path)
    assert built.has_scripts and built.url("app.css") == "/static/app-Z.css"
    script, part = built.get("app-X.js"), built.get("part-Y.js")
    assert script is not None and part is not None and built.url("part-Y.js") is None
    assert script.encoded("gzip, br") == ("br", b"br") and script.encoded("gzip") == ("identity", b"1")
    assert built.get("app-X.js.br") is None and built.get("manifest.json") is None


async def test_output_is_linked_where_no_script_shows_it(owner: Browser, api: Served) -> None:
    await submitted(owner)
    running = Running(api, await api.begin())
    running.say(b"hello\n")
    page = (await owner.get(f"/jobs/{running.job.id}")).text
    assert f'href="/v1/jobs/{running.job.id}/logs" download=' in page
