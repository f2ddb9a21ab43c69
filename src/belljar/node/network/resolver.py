"""The resolver of one slot: the only one that its machine needs, and under a list the only one that it reaches.

It answers names that the policy allows, opens exactly the addresses that it answers for as long as it says that they
hold, and withholds addresses that may never be reached, so that no name leads to them. What it refuses it remembers, so
that the job can be told why. It runs in this process, not as a program of its own: docs/network.md says why.
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
from belljar.node.network.answers import (
    MAX_QUESTION_BYTES,
    Found,
    Question,
    datagram,
    find_addresses,
    parse_question,
    respond,
    upstream_question,
)
from belljar.node.network.policy import Policy
from belljar.node.network.rules import opened
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Refused

log = structlog.get_logger()

_MAX_AT_ONCE = 64
_MAX_IN_A_ROW = 16
_MAX_CACHED = 256
_MAX_REMEMBERED = 1024
#: Different refused names that are kept; all are counted.
MAX_REFUSED_NAMES = 20
_UPSTREAM_SECONDS = 3.0
#: Between the answer and the connection some time passes; the address stays open for this much longer than its TTL.
_GRACE_SECONDS = 5
_CONNECTION_SECONDS = 10.0
_QUESTIONS_PER_CONNECTION = 32
_MAX_NAME_SHOWN = 253


@dataclass(slots=True)
class Refusals:
    """The first different names that were refused, and how many there were of all."""

    total: int = 0
    names: dict[tuple[str, IPv4Address | None], int] = field(default_factory=dict)

    def add(self, name: str, address: IPv4Address | None = None) -> None:
        self.total += 1
        key = (name[:_MAX_NAME_SHOWN], address)
        if key in self.names or len(self.names) < MAX_REFUSED_NAMES:
            self.names[key] = self.names.get(key, 0) + 1

    def listed(self) -> list[Refused]:
        return [
            Refused(address=address, protocol="dns", name=name, never=address is not None, count=count)
            for (name, address), count in self.names.items()
        ]


class Resolver:
    """Answers on a slot's ears while the `async with` block lasts. Belongs to one event loop."""

    def __init__(
        self,
        ears: DnsSockets,
        policy: Policy,
        *,
        never: Sequence[IPv4Network],
        nameservers: Sequence[IPv4Address],
        admit: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self._ears = ears
        self._policy = policy
        self._never = tuple(never)
        self._nameservers = tuple(map(str, nameservers))
        self._admit = admit
        self._cache: dict[str, tuple[float, Found]] = {}
        self._working: set[asyncio.Task[None]] = set()
        self.refusals = Refusals()
        #: Which name an address was answered for, to name it when a connection to it is refused.
        self._named: dict[IPv4Address, str] = {}

    async def __aenter__(self) -> Resolver:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ears.udp, self._receive)
        loop.add_reader(self._ears.tcp, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._ears.udp)
        loop.remove_reader(self._ears.tcp)
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    def explained(self, refused: Refused) -> Refused:
        """The same with the name that led there, and whether anyone could be let there."""
        address = refused.address
        if address is None:
            return refused
        return replace(refused, name=self._named.get(address), never=not self._may_be_told(address))

    def _receive(self) -> None:
        """Datagrams came. More than are worked on at once are dropped, as networks do."""
        for _ in range(_MAX_IN_A_ROW):
            try:
                wire, asker = self._ears.udp.recvfrom(2 * MAX_QUESTION_BYTES)
            except OSError:  # no more for now, or the echo of an answer that could not be delivered
                return
            question = parse_question(wire)
            if question is not None and len(self._working) < _MAX_AT_ONCE:
                self._begin(self._reply(question, asker))

    def _accept(self) -> None:
        try:
            connection, _ = self._ears.tcp.accept()
        except OSError:
            return
        if len(self._working) >= _MAX_AT_ONCE:
            connection.close()
            return
        connection.setblocking(False)
        self._begin(self._converse(connection))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def _reply(self, question: Question, asker: tuple[str, int]) -> None:
        response = await self._answer(question)
        with contextlib.suppress(OSError):
            self._ears.udp.sendto(datagram(question, response), asker)

    async def _converse(self, connection: socket.socket) -> None:
        """One connection: messages behind their length in two bytes (RFC 7766)."""
        reader, writer = await asyncio.open_connection(sock=connection, limit=2 * MAX_QUESTION_BYTES)
        try:
            async with asyncio.timeout(_CONNECTION_SECONDS):
                for _ in range(_QUESTIONS_PER_CONNECTION):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    if length > MAX_QUESTION_BYTES:
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
            if question.kind != dns.rdatatype.AAAA:  # asked beside A, and counted with it
                self.refusals.add(question.name)
            return respond(question, dns.rcode.REFUSED)
        if question.kind == dns.rdatatype.A:
            return await self._answer_addresses(question)
        # Machines have no IPv6, and no other record opens anything; under a list none is passed on either, since
        # what it holds could lead anywhere. Reverse names would tell of the host's own network.
        if not self._policy.open or question.kind in (dns.rdatatype.AAAA, dns.rdatatype.PTR, dns.rdatatype.ANY):
            return respond(question, dns.rcode.NOERROR)
        upstream = await self._ask(question)
        if upstream is None:
            return respond(question, dns.rcode.SERVFAIL)
        others = tuple(each for each in upstream.answer if each.rdtype not in (dns.rdatatype.A, dns.rdatatype.AAAA))
        return respond(question, upstream.rcode(), others)

    async def _answer_addresses(self, question: Question) -> dns.message.Message:
        expires, found = self._cache.get(question.name, (0.0, None))
        left = int(expires - time.monotonic())
        if found is not None and left >= 1:
            return respond(question, dns.rcode.NOERROR, found.records, left)
        upstream = await self._ask(question)
        if upstream is None:
            return respond(question, dns.rcode.SERVFAIL)
        found = find_addresses(upstream, self._may_be_told)
        if found.withheld:
            self.refusals.add(question.name, found.withheld[0])
            if not found.addresses:
                return respond(question, dns.rcode.REFUSED)
        if not found.addresses:
            return respond(question, upstream.rcode())
        try:
            await self._open(question.name, found)
        except NetworkError as error:
            log.warning("address_not_opened", error=error.message)
            return respond(question, dns.rcode.SERVFAIL)
        self._remember(question.name, found)
        return respond(question, dns.rcode.NOERROR, found.records)

    async def _open(self, name: str, found: Found) -> None:
        """Let the machine reach what it is about to be told."""
        if self._policy.open:
            return
        commands: list[str] = []
        for port in {rule.port for rule in self._policy.rules_for(name)}:
            commands += opened(found.addresses, port, found.ttl_seconds + _GRACE_SECONDS)
        await self._admit(commands)

    def _remember(self, name: str, found: Found) -> None:
        if len(self._cache) >= _MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[name] = (time.monotonic() + found.ttl_seconds, found)
        for address in found.addresses:
            if len(self._named) < _MAX_REMEMBERED:
                self._named[address] = name

    def _may_be_told(self, address: IPv4Address) -> bool:
        if not any(address in network for network in self._never):
            return True
        return any(address in rule.network for rule in self._policy.excepted)

    async def _ask(self, question: Question) -> dns.message.Message | None:
        """The first name server's answer that is one; None when none gave any."""
        for server in self._nameservers:
            query = upstream_question(question)
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
