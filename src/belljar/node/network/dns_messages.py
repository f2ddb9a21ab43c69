"""DNS messages of a slot's resolver: parsing queries, filtering an upstream's answer, encoding responses.

Pure functions. Every byte is hostile, the guest's and the upstream's. Sources: RFC 1035, RFC 6891.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

#: Bytes of the largest query or response over UDP; a query with one name is much smaller.
MAX_QUERY_BYTES = 1232
_HEADER_BYTES = 12
_MAX_CHAIN = 16
_MAX_ADDRESSES = 64
MIN_TTL_SECONDS = 1
MAX_TTL_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Question:
    """The single question of a query."""

    message: dns.message.Message
    #: In lower case, without the trailing dot.
    name: str
    kind: dns.rdatatype.RdataType


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The allowed addresses of a name, its aliases (CNAME) as `records`, and the addresses that are `withheld`."""

    records: tuple[dns.rrset.RRset, ...]
    addresses: tuple[IPv4Address, ...]
    withheld: tuple[IPv4Address, ...]
    ttl_seconds: int


def parse_question(wire: bytes) -> Question | None:
    """Return the one question in a guest's query; None for any other message, which gets no answer."""
    if not _HEADER_BYTES < len(wire) <= MAX_QUERY_BYTES:
        return None
    # One question, no records but an OPT and a signature: cheap to parse, however hostile.
    counts = [int.from_bytes(wire[at : at + 2], "big") for at in (4, 6, 8, 10)]
    if counts[:3] != [1, 0, 0] or counts[3] > 2:
        return None
    try:
        message = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return None
    if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY:
        return None
    question = message.question[0]
    if question.rdclass != dns.rdataclass.IN:
        return None
    return Question(message, question.name.to_text(omit_final_dot=True).lower(), question.rdtype)


def build_upstream_query(question: Question) -> dns.message.Message:
    """Return a new query with the same question, a fresh identifier and nothing else from the guest."""
    name = dns.name.from_text(question.name + ".")
    return dns.message.make_query(name, question.kind, use_edns=0, payload=MAX_QUERY_BYTES)


def extract_addresses(answer: dns.message.Message, allowed: Callable[[IPv4Address], bool]) -> AddressAnswer:
    """Follow aliases from the queried name to its addresses, and withhold those that are not allowed."""
    current = answer.question[0].name
    chain: list[dns.rrset.RRset] = []
    ttl = MAX_TTL_SECONDS
    for _ in range(_MAX_CHAIN):
        rrset = answer.get_rrset(answer.answer, current, dns.rdataclass.IN, dns.rdatatype.A)
        if rrset is not None:
            ttl = _clamp_ttl(min(ttl, rrset.ttl))
            addresses = [IPv4Address(record.address) for record in rrset][:_MAX_ADDRESSES]
            permitted = tuple(address for address in addresses if allowed(address))
            withheld = tuple(address for address in addresses if not allowed(address))
            if permitted:
                chain.append(dns.rrset.from_text(current, ttl, "IN", "A", *map(str, permitted)))
            for alias in chain:
                alias.ttl = ttl
            return AddressAnswer(tuple(chain), permitted, withheld, ttl)
        alias_set = answer.get_rrset(answer.answer, current, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias_set is None:
            break
        ttl = _clamp_ttl(min(ttl, alias_set.ttl))
        target = alias_set[0].target
        chain.append(dns.rrset.from_text(current, ttl, "IN", "CNAME", target.to_text()))
        current = target
    return AddressAnswer((), (), (), ttl)


def _clamp_ttl(ttl: int) -> int:
    return max(MIN_TTL_SECONDS, min(ttl, MAX_TTL_SECONDS))


def build_response(
    question: Question, rcode: dns.rcode.Rcode, records: tuple[dns.rrset.RRset, ...] = (), ttl: int | None = None
) -> dns.message.Message:
    """Return the response to a question; `ttl` seconds replace the records' own TTL."""
    response = dns.message.make_response(question.message, recursion_available=True)
    response.set_rcode(rcode)
    for record in records:
        if ttl is not None:
            record = dns.rrset.from_rdata_list(record.name, ttl, list(record))
        response.answer.append(record)
    return response


def encode_datagram(question: Question, response: dns.message.Message) -> bytes:
    """Encode a response for UDP within the client's size, marked as truncated when it does not fit."""
    max_bytes = max(512, min(question.message.payload or 512, MAX_QUERY_BYTES))
    return response.to_wire(max_size=max_bytes, prefer_truncation=True)
