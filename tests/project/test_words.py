"""Names and messages use the field's terms: retired names and phrases do not come back.

A private word costs each reader a dictionary entry. docs/glossary.md has the words to use.
"""

from __future__ import annotations

import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

#: Retired name → the name that replaced it. Compared with whole identifiers, leading underscores aside.
RETIRED_NAMES = {
    "Allowance": "ExtractionBudget",
    "AnySlot": "Slot",
    "Asked": "ServicesDep",
    "Audience": "AttemptObserver",
    "Chooser": "HypervisorSelector",
    "Ears": "DnsSockets",
    "Gate": "AuthMiddleware",
    "Ground": "NetworkBackend",
    "Laid": "ScriptDiskLayout",
    "Largest": "NodeLimits",
    "NEVER": "BLOCKED_NETWORKS",
    "Nowhere": "DiscardArtifacts",
    "Onlooker": "BuildObserver",
    "OwnRoot": "RootlessHelper",
    "PassedOutput": "PassthroughOutput",
    "Plug": "SlotFactory",
    "Preparation": "WarmUp",
    "Preparations": "WarmUps",
    "Provided": "InstalledPackages",
    "Ready": "ProvisionedMachine",
    "StandIn": "RootlessBackend",
    "Supply": "MachineProvisioner",
    "Wanted": "InstallRequest",
    "Wish": "UploadHints",
    "Wishes": "ImageConfig",
    "WorkerRooms": "WorkerContext",
    "be_reaper": "reaper_main",
    "beat": "heartbeat",
    "beyond": "first_denied",
    "build_words": "on_build_output",
    "come_forward": "set_foreground",
    "fitted": "round_up_shape",
    "give_back": "requeue",
    "hear_exits": "subscribe_exits",
    "is_the_job": "clear_oom_adj",
    "let_go_with_limit": "resume_traced",
    "look_after": "poll_cancellations",
    "no_processes": "processes_init",
    "only_one": "try_lock",
    "persistently": "retry_until_written",
    "plugged": "with_network_slot",
    "plugging": "network_slot",
    "rehearse": "warm_up",
    "tell_network": "configure_network",
    "tell_of_loss": "log_lost_attempt",
    "workshop": "build_dir",
}
#: Words that stand in no identifier, also not as a part of one (`_told`, `asked_at`, `store_told`). The name of a test
#: is a sentence: SENTENCE_WORDS may stand in it.
RETIRED_WORDS = {
    "ask": "request: an API is requested, a person is asked",
    "asked": "requested, or spec for a job's options",
    "beheld": "observed",
    "ears": "sockets",
    "heard": "received",
    "laid": "layout, written",
    "least": "MIN_, min_",
    "most": "MAX_, max_",
    "onlooker": "observer",
    "rehearsal": "warm_up",
    "rehearsals": "warm_ups",
    "rehearse": "warm_up",
    "rehearsed": "warmed_up",
    "rooms": "packages, or context",
    "said": "message, reported",
    "spoilt": "invalid, discarded",
    "standin": "rootless",
    "told": "translated, reported; a name says what is done",
    "wish": "request, hints",
    "wishes": "config, requests",
    "workshop": "build_dir",
}
SENTENCE_WORDS = frozenset({"asked", "least", "most", "said"})
#: A stable piece of a retired sentence → what to write. Compared with sources and documents; line ends do not matter.
RETIRED_PHRASES = {
    "a ceiling of egress": "invalid setting max_egress",
    "a question that was not asked": "unexpected PONG from guest agent",
    "as decompression bombs do": "possible zip bomb",
    "belljar itself failed": "internal error; see the server log",
    "deceives its own wish": "can only poison the cache entry for its own requirement set",
    "deceives those who": "can only poison the cache entry for its own requirement set",
    "given up while it was unpacked": "upload cancelled while extracting",
    "held back": "dropped (connection or rate limit)",
    "in the middle of it": "crashed during the attempt",
    "is another belljar's": "format not supported; delete it to rebuild",
    "is belljar's own": "reads this command's stdin",
    "is more than this project may have": "exceeds the project's limit",
    "is no host name": "invalid host name; expected …",
    "is not one of ours": "invalid cursor; invalid Last-Event-ID",
    "is not what it should be": "unexpected file type or link count",
    "is slow is shown": "show progress for slow work",
    "is the data folder's disk well": "timed out; check the disk",
    "kept right": "synchronised (NTP)",
    "keys and rooms": "keys and packages",
    "make a key worthless": "revoke a key",
    "may be promised this many times": "overcommit ratio",
    "named in no UTF-8": "file name not UTF-8",
    "needs somebody who": "no … given",
    "of another origin may not use": "cross-origin requests are refused",
    "or of no stream": "invalid OUTPUT frame",
    "silent for too long": "lease expired (no heartbeat from the worker)",
    "the log has no record at this place": "Last-Event-ID is not an event boundary",
    "the machine went away": "lost the connection to the guest agent",
    "the reaper does not wait": "process template did not become ready",
    "the whole story": "see {log}",
    "those used longest ago": "the least recently used are evicted",
    "whoever else listens": "another process that listens",
    "wishes for more": "exceeds",
    "work alone, beside": "run a worker for a server started with --no-worker",
}
#: Log events that were renamed; a new event is `noun_verb` in the past. CHANGELOG has the table for operators.
RETIRED_EVENTS = {
    "accelerator_not_remembered": "choice_cache_write_failed",
    "address_not_opened": "address_allow_failed",
    "attempt_broke": "attempt_failed_after_its_end",
    "cannot_claim": "background_task_failed",
    "cannot_look_after_jobs": "background_task_failed",
    "cannot_write_heartbeat": "background_task_failed",
    "cgroup_left": "cgroup_removal_failed",
    "cgroup_unusable": "cgroup_not_created",
    "flows_not_forgotten": "conntrack_flush_failed",
    "machine_folder_left": "machine_folder_removal_failed",
    "network_leftovers_stay": "network_cleanup_failed",
    "networks_lost": "network_backend_lost",
    "no_slot_made": "background_task_failed",
    "pool_clone_failed": "background_task_failed",
    "request_broke": "unhandled_exception",
    "slot_left": "slot_cleanup_failed",
    "snapshot_failed": "snapshot_make_failed",
    "store_refused": "operation_refused",
    "waiting_clone_lost": "warm_clone_lost",
}
#: Names that contain a retired word and are not ours: of libraries, of the kernel, of programs under test.
FOREIGN_NAMES: frozenset[str] = frozenset()
#: Folders of code whose names are checked.
CODE = ("src", "tests", "bench", "script")
#: Documents whose phrases are checked, with src. CHANGELOG may name an old event in its table.
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_C_NOISE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.S)


def sources(*suffixes: str) -> list[Path]:
    """Return the files of code with these suffixes; a script without a suffix counts as Python when it begins so."""
    paths = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    return [path for path in paths if path.suffix in suffixes or (".py" in suffixes and is_python_script(path))]


def is_python_script(path: Path) -> bool:
    return path.suffix == "" and path.open("rb").readline().rstrip().endswith((b"python", b"python3"))


def python_names(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each identifier of a Python source."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def c_names(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of each identifier of a C source, without comments and texts."""
    bare = _C_NOISE.sub(lambda noise: "\n" * noise[0].count("\n"), text)
    for number, line in enumerate(bare.splitlines(), 1):
        if not line.lstrip().startswith("#include"):
            yield from ((number, name) for name in re.findall(r"[A-Za-z_]\w*", line))


@functools.cache
def words_of(name: str) -> frozenset[str]:
    """Return the words of an identifier, in lower case: of `store_told`, `StoreTold` and `STORE_TOLD` alike."""
    parts = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).split("_")
    return frozenset(part.lower() for part in parts if part)


@functools.cache
def replacement(name: str) -> str | None:
    """Return what replaced a retired name; None when the name may be used."""
    if name in FOREIGN_NAMES:
        return None
    if (better := RETIRED_NAMES.get(name.lstrip("_"))) is not None:
        return better
    words = words_of(name) - SENTENCE_WORDS if name.startswith("test_") else words_of(name)
    return next((RETIRED_WORDS[word] for word in sorted(words) if word in RETIRED_WORDS), None)


def retired_names(path: Path) -> list[str]:
    """Return "file:line: name → replacement" for each retired name of a file."""
    names = (c_names if path.suffix in (".c", ".h") else python_names)(path.read_text())
    place = path.relative_to(ROOT)
    return [f"{place}:{line}: {name} → {better}" for line, name in names if (better := replacement(name)) is not None]


def test_no_identifier_is_a_retired_name() -> None:
    found = [line for path in sources(".py", ".c", ".h") for line in retired_names(path)]
    assert not found, "\n".join(["use the field's term:", *found])


def test_no_file_has_a_retired_name() -> None:
    found = [
        f"{path.relative_to(ROOT)} → {better}"
        for path in sources(".py", ".c", ".h")
        if (better := replacement(path.stem)) is not None
    ]
    assert not found, "\n".join(["rename:", *found])


@pytest.mark.parametrize("phrase", RETIRED_PHRASES)
def test_no_message_or_document_has_a_retired_phrase(phrase: str) -> None:
    pattern = re.compile(r"\s+".join(map(re.escape, phrase.split())), re.I)
    texts = [*DOCUMENTS, *(path for path in sources(".py", ".c", ".h") if path.is_relative_to(ROOT / "src"))]
    found = [str(path.relative_to(ROOT)) for path in texts if pattern.search(joined(path))]
    assert not found, f"write {RETIRED_PHRASES[phrase]!r} instead in {', '.join(found)}"


@functools.cache
def joined(path: Path) -> str:
    """Return a file's text with adjacent texts of several lines joined, and without comment signs."""
    return re.sub(r'"\s*\n\s*f?"|\n\s*#:?', " ", path.read_text()).replace("  ", " ")


def test_no_log_event_has_a_retired_name() -> None:
    texts = {path: path.read_text() for path in sources(".py")}
    found = [
        f"{path.relative_to(ROOT)}: {event} → {better}"
        for event, better in RETIRED_EVENTS.items()
        for path, text in texts.items()
        if path != Path(__file__) and f'"{event}"' in text
    ]
    assert not found, "\n".join(found)


def test_the_changelog_lists_the_renamed_log_events() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)`", (ROOT / "CHANGELOG.md").read_text(), re.M))
    assert {event: rows.get(event) for event in RETIRED_EVENTS} == RETIRED_EVENTS


def test_the_check_of_names_finds_them() -> None:
    assert replacement("_told") and replacement("store_told") and replacement("asked_at") and replacement("MOST_BYTES")
    assert replacement("StandIn") and replacement("_give_back") and replacement("workshop")
    assert replacement("task") is None and replacement("utmost") is None and replacement("is_ready") is None
    assert [name for _, name in c_names('int told; /* heard */ say("laid");')] == ["int", "told", "say"]
