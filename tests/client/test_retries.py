"""Requests are repeated only when that cannot do their work twice; streams go on where they broke off."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from belljar.client import Client, LimitReached, ServerError, Unreachable
from belljar.client.retry import delay_seconds

JOB = {"id": "job_1", "status": "running", "exit_code": None}


@dataclass
class Scripted:
    """A server that answers each connection with the next of its answers, and then closes it."""

    url: str
    requests: list[bytes] = field(default_factory=list)

    def bodies(self) -> list[Any]:
        return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in self.requests]


@contextmanager
def scripted(*answers: bytes) -> Iterator[Scripted]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        server = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(20)
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += connection.recv(65536)
                    head, _, body = request.partition(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                    while len(body) < length:
                        body += connection.recv(65536)
                    server.requests.append(head + b"\r\n\r\n" + body)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server
        thread.join(20)
        assert not thread.is_alive()


def answer(status: int, body: Any, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def problem(status: int, code: str, *headers: str) -> bytes:
    return answer(status, {"status": status, "code": code, "detail": "no"}, *headers)


def test_a_submission_is_repeated_with_the_same_key() -> None:
    answers = (b"", problem(503, "overloaded", "Retry-After: 0"), answer(202, JOB))
    with scripted(*answers) as server, Client(server.url) as client:
        assert client.submit(code="1", language="python").id == "job_1"
    keys = {body["idempotency_key"] for body in server.bodies()}
    assert len(server.requests) == 3 and len(keys) == 1 and None not in keys


def test_what_could_happen_twice_is_not_repeated() -> None:
    with scripted(b"") as server, Client(server.url) as client, pytest.raises(Unreachable, match="was lost"):
        client.create_key(name="x")
    assert len(server.requests) == 1
    with scripted(problem(502, "bad_gateway")) as server, Client(server.url) as client, pytest.raises(ServerError):
        client.create_key(name="x")


def test_a_quota_is_an_error_at_once() -> None:
    refusing = scripted(problem(429, "quota_exceeded"))
    with refusing as server, Client(server.url) as client, pytest.raises(LimitReached) as reached:
        client.submit(code="1", language="python")
    assert reached.value.code == "quota_exceeded"


def test_the_number_of_repetitions_is_bounded() -> None:
    with scripted(b"", b"") as server, Client(server.url, max_retries=1) as client, pytest.raises(Unreachable):
        client.job("job_1")
    assert len(server.requests) == 2


def test_a_followed_log_goes_on_after_the_last_event() -> None:
    head = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
    first = head + b'id: 7\nevent: stdout\ndata: {"text": "a", "attempt": 1}\n\nid: 9\nevent: stdout\ndata: {"te'
    rest = (
        b": comment\n\n"
        b'id: 9\nevent: stderr\ndata: {"text": "b", "attempt": 1}\n\nevent: end\ndata: {"status": "succeeded"}\n\n'
    )
    with scripted(answer(200, JOB), first, head + rest) as server, Client(server.url) as client:
        pieces = list(client.job("job_1").follow())
    assert [(piece.stream, piece.text, piece.attempt) for piece in pieces] == [("stdout", "a", 1), ("stderr", "b", 1)]
    assert b"Last-Event-ID: 7" in server.requests[2] and b"Last-Event-ID" not in server.requests[1]


def test_a_log_that_ends_without_its_end_is_no_success() -> None:
    cut = b'HTTP/1.1 200 X\r\nConnection: close\r\n\r\nid: 7\nevent: stdout\ndata: {"text": "a", "attempt": 1}\n\n'
    with scripted(answer(200, JOB), cut) as server, Client(server.url, max_retries=0) as client:
        job = client.job("job_1")
        with pytest.raises(Unreachable, match="ended before its job"):
            list(job.follow())


def test_pauses_grow_and_follow_the_server() -> None:
    lost = Unreachable("x", is_temporary=True)
    pauses = [delay_seconds(lost, attempt, is_repeatable=True, max_retries=9) for attempt in range(9)]
    assert all(pause is not None and 0.1 <= pause <= 5 for pause in pauses)
    assert pauses[0] < pauses[2] < pauses[4]  # type: ignore[operator]
    assert delay_seconds(lost, 0, is_repeatable=False, max_retries=9) is None
    assert delay_seconds(Unreachable("bad URL"), 0, is_repeatable=True, max_retries=9) is None
    limited = LimitReached(429, "rate_limited", "x", retry_after_seconds=3)
    assert 3 <= (delay_seconds(limited, 0, is_repeatable=False, max_retries=9) or 0) < 4
    limited.retry_after_seconds = 3600
    assert delay_seconds(limited, 0, is_repeatable=True, max_retries=9) is None
