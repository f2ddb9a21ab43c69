"""What a slot's resolver says: which questions it takes, and how an upstream's answer is cut down to what is allowed.

Pure functions over DNS messages; every byte in is hostile, the guest's and the upstream's. Sources: RFC 1035, RFC 6891.
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

#: A question with one name fits well; what is larger is no question.
MAX_QUESTION_BYTES = 1232
_HEADER_BYTES = 12
_MAX_CHAIN = 16
_MAX_ADDRESSES = 64
MIN_TTL_SECONDS = 1
MAX_TTL_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Question:
    message: dns.message.Message
    #: In lower case, without the trailing dot.
    name: str
    kind: dns.rdatatype.RdataType


@dataclass(frozen=True, slots=True)
class Found:
    """The addresses of a name that may be told, with the aliases on the way; how many may not is `withheld`."""

    records: tuple[dns.rrset.RRset, ...]
    addresses: tuple[IPv4Address, ...]
    withheld: tuple[IPv4Address, ...]
    ttl_seconds: int


def parse_question(wire: bytes) -> Question | None:
    """The one question in a message from a guest; None for anything else, which deserves no answer."""
    if not _HEADER_BYTES < len(wire) <= MAX_QUESTION_BYTES:
        return None
    # One question, no records but an OPT and a signature: cheap to parse, whoever wrote it.
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


def upstream_question(question: Question) -> dns.message.Message:
    """A message of our own that asks the same, with a fresh identifier and nothing else of the guest's."""
    name = dns.name.from_text(question.name + ".")
    return dns.message.make_query(name, question.kind, use_edns=0, payload=MAX_QUESTION_BYTES)


def find_addresses(answer: dns.message.Message, allowed: Callable[[IPv4Address], bool]) -> Found:
    """Follow the aliases from the name that was asked for to its addresses, and withhold those that are not allowed."""
    current = answer.question[0].name
    chain: list[dns.rrset.RRset] = []
    ttl = MAX_TTL_SECONDS
    for _ in range(_MAX_CHAIN):
        found = answer.get_rrset(answer.answer, current, dns.rdataclass.IN, dns.rdatatype.A)
        if found is not None:
            ttl = _clamped(min(ttl, found.ttl))
            addresses = [IPv4Address(record.address) for record in found][:_MAX_ADDRESSES]
            told = tuple(address for address in addresses if allowed(address))
            withheld = tuple(address for address in addresses if not allowed(address))
            if told:
                chain.append(dns.rrset.from_text(current, ttl, "IN", "A", *map(str, told)))
            for alias in chain:
                alias.ttl = ttl
            return Found(tuple(chain), told, withheld, ttl)
        alias_set = answer.get_rrset(answer.answer, current, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias_set is None:
            break
        ttl = _clamped(min(ttl, alias_set.ttl))
        target = alias_set[0].target
        chain.append(dns.rrset.from_text(current, ttl, "IN", "CNAME", target.to_text()))
        current = target
    return Found((), (), (), ttl)


def _clamped(ttl: int) -> int:
    return max(MIN_TTL_SECONDS, min(ttl, MAX_TTL_SECONDS))


def respond(
    question: Question, rcode: dns.rcode.Rcode, records: tuple[dns.rrset.RRset, ...] = (), ttl: int | None = None
) -> dns.message.Message:
    """The answer to a question; with `ttl` instead of the records' own."""
    response = dns.message.make_response(question.message, recursion_available=True)
    response.set_rcode(rcode)
    for record in records:
        if ttl is not None:
            record = dns.rrset.from_rdata_list(record.name, ttl, list(record))
        response.answer.append(record)
    return response


def datagram(question: Question, response: dns.message.Message) -> bytes:
    """As one datagram of the size that the asker takes, marked as cut off when it does not fit."""
    room = max(512, min(question.message.payload or 512, MAX_QUESTION_BYTES))
    return response.to_wire(max_size=room, prefer_truncation=True)
