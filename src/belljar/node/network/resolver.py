"""The DNS resolver of one slot: under an allowlist the only one that its machine reaches.

It answers names that the policy allows, allows exactly the answered addresses for their TTL, and withholds blocked
addresses, so that no name leads to them. It records refusals for the job's record. It runs in this process rather than
as a program of its own; docs/network.md has the reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import structlog

from belljar.model.errors import NetworkError
from belljar.node.network.dns_messages import (
    MAX_QUERY_BYTES,
    AddressAnswer,
    Question,
    build_response,
    build_upstream_query,
    encode_datagram,
    extract_addresses,
    parse_question,
)
from belljar.node.network.policy import Policy
from belljar.node.network.rules import allow_addresses
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import RefusedDestination

log = structlog.get_logger()

_MAX_TASKS = 64
_MAX_DATAGRAMS_PER_TURN = 16
_MAX_CACHED = 256
_MAX_NAMED = 1024
#: Different refused names that are recorded; all are counted.
MAX_REFUSED_NAMES = 20
_UPSTREAM_SECONDS = 3.0
#: Seconds that an address stays allowed after its TTL: the machine connects some time after the answer.
_GRACE_SECONDS = 5
_CONNECTION_SECONDS = 10.0
_MAX_QUERIES_PER_CONNECTION = 32
_MAX_NAME_LENGTH = 253


@dataclass(slots=True)
class Refusals:
    """The first different refused names, and the number of all refusals."""

    total: int = 0
    names: dict[tuple[str, IPv4Address | None], int] = field(default_factory=dict)

    def add(self, name: str, address: IPv4Address | None = None) -> None:
        """Count a refusal of a name; `address` is the blocked address that it leads to, if any."""
        self.total += 1
        key = (name[:_MAX_NAME_LENGTH], address)
        if key in self.names or len(self.names) < MAX_REFUSED_NAMES:
            self.names[key] = self.names.get(key, 0) + 1

    def to_list(self) -> list[RefusedDestination]:
        """Return the recorded refusals in the order of their first occurrence."""
        return [
            RefusedDestination(
                address=address, protocol="dns", name=name, always_blocked=address is not None, count=count
            )
            for (name, address), count in self.names.items()
        ]


class Resolver:
    """A resolver that serves a slot's sockets while its `async with` block lasts. It belongs to one event loop."""

    def __init__(
        self,
        dns_sockets: DnsSockets,
        policy: Policy,
        *,
        blocked: Sequence[IPv4Network],
        nameservers: Sequence[IPv4Address],
        allow: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self._dns_sockets = dns_sockets
        self._policy = policy
        self._blocked = tuple(blocked)
        self._nameservers = tuple(map(str, nameservers))
        self._allow = allow
        self._cache: dict[str, tuple[float, AddressAnswer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusals = Refusals()
        #: The name whose answer last had an address, the oldest first.
        self._name_of: dict[IPv4Address, str] = {}

    async def __aenter__(self) -> Resolver:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._dns_sockets.udp, self._receive)
        loop.add_reader(self._dns_sockets.tcp, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._dns_sockets.udp)
        loop.remove_reader(self._dns_sockets.tcp)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def explain(self, refused: RefusedDestination) -> RefusedDestination:
        """Return the refusal with the name that led to its address, and whether the address is always blocked."""
        address = refused.address
        if address is None:
            return refused
        return replace(refused, name=self._name_of.get(address), always_blocked=not self._is_allowed(address))

    def name_of(self, address: IPv4Address) -> str | None:
        """Return the name whose answer last had this address."""
        return self._name_of.get(address)

    def _receive(self) -> None:
        """Read datagrams; drop them while _MAX_TASKS queries are in progress."""
        for _ in range(_MAX_DATAGRAMS_PER_TURN):
            try:
                wire, client = self._dns_sockets.udp.recvfrom(2 * MAX_QUERY_BYTES)
            except OSError:  # no datagram left, or an ICMP error for an earlier answer
                return
            question = parse_question(wire)
            if question is not None and len(self._tasks) < _MAX_TASKS:
                self._start(self._answer_datagram(question, client))

    def _accept(self) -> None:
        try:
            connection, _ = self._dns_sockets.tcp.accept()
        except OSError:
            return
        if len(self._tasks) >= _MAX_TASKS:
            connection.close()
            return
        connection.setblocking(False)
        self._start(self._serve_connection(connection))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(self, question: Question, client: tuple[str, int]) -> None:
        response = await self._answer(question)
        with contextlib.suppress(OSError):
            self._dns_sockets.udp.sendto(encode_datagram(question, response), client)

    async def _serve_connection(self, connection: socket.socket) -> None:
        """Serve one TCP connection: each message follows its length in two bytes (RFC 7766)."""
        reader, writer = await asyncio.open_connection(sock=connection, limit=2 * MAX_QUERY_BYTES)
        try:
            async with asyncio.timeout(_CONNECTION_SECONDS):
                for _ in range(_MAX_QUERIES_PER_CONNECTION):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    if length > MAX_QUERY_BYTES:
                        break
                    question = parse_question(await reader.readexactly(length))
                    if question is None:
                        break
                    answer = (await self._answer(question)).to_wire()
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _answer(self, question: Question) -> dns.message.Message:
        if not self._policy.open and not self._policy.rules_for(question.name):
            if question.kind != dns.rdatatype.AAAA:  # clients query A and AAAA together; count one
                self.refusals.add(question.name)
            return build_response(question, dns.rcode.REFUSED)
        if question.kind == dns.rdatatype.A:
            return await self._answer_addresses(question)
        # Machines have no IPv6, and no other record type allows an address. Under an allowlist no other record is
        # forwarded, since its contents could lead anywhere. PTR records would reveal the host's own network.
        if not self._policy.open or question.kind in (dns.rdatatype.AAAA, dns.rdatatype.PTR, dns.rdatatype.ANY):
            return build_response(question, dns.rcode.NOERROR)
        upstream = await self._query_upstream(question)
        if upstream is None:
            return build_response(question, dns.rcode.SERVFAIL)
        others = tuple(each for each in upstream.answer if each.rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA))
        return build_response(question, upstream.rcode(), others)

    async def _answer_addresses(self, question: Question) -> dns.message.Message:
        expires, answer = self._cache.get(question.name, (0.0, None))
        left = int(expires - time.monotonic())
        if answer is not None and left >= 1:
            return build_response(question, dns.rcode.NOERROR, answer.records, left)
        upstream = await self._query_upstream(question)
        if upstream is None:
            return build_response(question, dns.rcode.SERVFAIL)
        answer = extract_addresses(upstream, self._is_allowed)
        if answer.withheld:
            self.refusals.add(question.name, answer.withheld[0])
            if not answer.addresses:
                return build_response(question, dns.rcode.REFUSED)
        if not answer.addresses:
            return build_response(question, upstream.rcode())
        try:
            await self._allow_addresses(question.name, answer)
        except NetworkError as error:
            log.warning("address_allow_failed", error=error.message)
            return build_response(question, dns.rcode.SERVFAIL)
        self._cache_answer(question.name, answer)
        return build_response(question, dns.rcode.NOERROR, answer.records)

    async def _allow_addresses(self, name: str, answer: AddressAnswer) -> None:
        """Allow the addresses of an answer before it is sent."""
        if self._policy.open:
            return
        commands: list[str] = []
        for port in {rule.port for rule in self._policy.rules_for(name)}:
            commands += allow_addresses(answer.addresses, port, answer.ttl_seconds + _GRACE_SECONDS)
        await self._allow(commands)

    def _cache_answer(self, name: str, answer: AddressAnswer) -> None:
        if len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[name] = (time.monotonic() + answer.ttl_seconds, answer)
        for address in answer.addresses:
            self._name_of.pop(address, None)
            self._name_of[address] = name
        while len(self._name_of) > _MAX_NAMED:
            del self._name_of[next(iter(self._name_of))]

    def _is_allowed(self, address: IPv4Address) -> bool:
        if not any(address in network for network in self._blocked):
            return True
        return any(address in rule.network for rule in self._policy.exceptions)

    async def _query_upstream(self, question: Question) -> dns.message.Message | None:
        """Return the first valid answer of a name server; None when none gives one."""
        for server in self._nameservers:
            query = build_upstream_query(question)
            try:
                answer, _ = await dns.asyncquery.udp_with_fallback(
                    query, server, timeout=_UPSTREAM_SECONDS, ignore_unexpected=True
                )
            except (dns.exception.DNSException, OSError, EOFError) as error:
                log.debug("name_server_failed", server=server, error=str(error))
                continue
            if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN) and answer.question == query.question:
                return answer
        return None
