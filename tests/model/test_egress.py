"""Egress policies: what is accepted, how it is normalised, and the messages for what is refused."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from belljar.control.jobs.egress_limit import check_egress, egress_limit_of
from belljar.model.egress import MAX_ENTRIES, Destination, first_denied, parse_destination, parse_egress
from belljar.model.errors import InvalidOption
from belljar.model.job_options import JobOptions
from belljar.model.quotas import QuotaLimits
from belljar.packages.registries import package_destinations, package_environment
from belljar.settings import Settings


@pytest.mark.parametrize("word", ["none", "open", "packages"])
def test_words_are_taken_in_any_case_and_alone(word: str) -> None:
    assert parse_egress(word).value == parse_egress([word.upper()]).value == word


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("example.org.:443", "example.org:443"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.BÜCHER.example:8443", "*.xn--bcher-kva.example:8443"),
        ("faß.example", "xn--fa-hia.example"),
        ("example。org", "example.org"),
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.0/24:80", "203.0.113.0/24:80"),
        ("_service.example.org", "_service.example.org"),
    ],
)
def test_entries_are_normalised(given: str, normal: str) -> None:
    assert parse_egress([given]).value == (normal,)
    assert parse_egress(normal).value == (normal,)


def test_a_string_with_commas_is_a_list_and_repetitions_are_one() -> None:
    value = parse_egress("a.example, b.example:443,A.example.").value
    assert value == ("a.example", "b.example:443") == parse_egress(["a.example", "b.example:443"]).value


@pytest.mark.parametrize(
    "given",
    [
        "",
        ",",
        "a.example,",
        "none,open",
        "open,a.example",
        ["none", "a.example"],
        "https://a.example",
        "a.example/path",
        "a.example:0",
        "a.example:65536",
        "a.example:http",
        "a.example:",
        ":443",
        "a..example",
        ".example",
        "-a.example",
        "a-.example",
        "a b.example",
        "a.*.example",
        "*",
        "*.",
        "foo*.example",
        "**.example",
        "a\0.example",
        "localhost",
        "opne",
        "*.org",
        "x.localhost",
        "1.2.3",
        "300.1.1.1",
        "1.2.3.4/33",
        "203.0.113.1/24",
        "fd00::1",
        "[fd00::1]:80",
        "::ffff:169.254.169.254",
        "2852039166",
        "x" * 64 + ".example",
        ".".join(["x" * 60] * 5),
        "\u202ea.example",
        "xn--\xff.example",
    ],
)
def test_malformed_and_contradictory_policies_are_refused(given: object) -> None:
    with pytest.raises(ValueError):
        parse_egress(given)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        JobOptions(egress=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    ["10.0.0.0/8", "127.0.0.1", "169.254.169.254:80", "192.168.1.0/24", "224.0.0.1", "172.31.255.255", "100.64.0.1"],
)
def test_private_and_local_networks_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="no job may reach"):
        parse_egress(given)


def test_ten_thousand_entries_are_refused_at_once() -> None:
    many = [f"h{number}.example" for number in range(10_000)]
    for entries in (many, ",".join(many)):
        with pytest.raises(ValueError, match=f"at most {MAX_ENTRIES}"):
            parse_egress(entries)
    assert len(parse_egress(many[:MAX_ENTRIES]).destinations) == MAX_ENTRIES


_names = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{0,8}){1,3}", fullmatch=True)
_networks = st.builds(
    lambda address, prefix: IPv4Network((0x14000000 | address >> (32 - prefix) << (32 - prefix), prefix), strict=False),
    st.integers(0, 0x00FFFFFF),
    st.integers(8, 32),
)
_ports = st.none() | st.integers(1, 65535)
_destinations = st.one_of(
    st.builds(lambda name, below, port: Destination(name=name, below=below, port=port), _names, st.booleans(), _ports),
    st.builds(lambda network, port: Destination(network=network, port=port), _networks, _ports),
)


@given(_destinations)
def test_what_is_printed_is_read_back(destination: Destination) -> None:
    if destination.name is None or destination.name.rpartition(".")[2] != "localhost":
        assert parse_destination(str(destination)) == destination


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_raise_value_error(text: str) -> None:
    try:
        parsed = parse_egress(text)
    except ValueError:
        return
    assert parse_egress(parsed.value) == parsed


@given(_destinations, _destinations)
def test_covering_is_a_matter_of_names_networks_and_ports(one: Destination, other: Destination) -> None:
    assert one.covers(one)
    if one.covers(other) and other.covers(one):
        assert one == other


@pytest.mark.parametrize(
    ("requested", "limit", "allowed"),
    [
        ("none", "none", True),
        ("open", "none", False),
        ("packages", "none", False),
        ("open", "packages", False),
        ("packages", "packages", True),
        ("packages", "open", True),
        ("pypi.org:443", "packages", True),
        ("pypi.org:80", "packages", False),
        ("pypi.org", "packages", False),
        ("a.example.org:443", "*.example.org", True),
        ("example.org", "*.example.org", False),
        ("*.a.example.org", "*.example.org", True),
        ("*.example.org", "*.a.example.org", False),
        ("203.0.113.7:80", "203.0.113.0/24", True),
        ("203.0.113.0/24", "203.0.113.0/25", False),
        ("203.0.113.7", "203.0.113.0/24:80", False),
        ("open", "203.0.113.0/24", False),
    ],
)
def test_limits_allow_what_they_cover(requested: str, limit: str, allowed: bool) -> None:
    packages = package_destinations(Settings())
    assert (first_denied(parse_egress(requested), parse_egress(limit), packages) is None) is allowed


def test_a_project_has_an_egress_limit_of_its_own() -> None:
    settings = Settings(max_egress="packages", project_max_egress={"trusted": "open", "exam": "none"})
    check_egress("open", egress_limit_of("trusted", settings), settings)
    check_egress("packages", egress_limit_of("anyone", settings), settings)
    with pytest.raises(InvalidOption, match=r"egress open exceeds .* packages \(setting max_egress\)") as refused:
        check_egress("open", egress_limit_of("anyone", settings), settings)
    assert refused.value.details == {"option": "egress", "limit": "packages"}
    with pytest.raises(InvalidOption, match="setting project_max_egress"):
        check_egress(["pypi.org:443"], egress_limit_of("exam", settings), settings)


def test_a_quota_replaces_the_settings_of_egress_and_names_the_entry_over_it() -> None:
    settings = Settings(max_egress="none", project_max_egress={"exam": "none"})
    limit = egress_limit_of("exam", settings, QuotaLimits(max_egress="pypi.org,*.example.org:443"))
    check_egress(["pypi.org:80", "a.example.org:443"], limit, settings)
    with pytest.raises(InvalidOption) as refused:
        check_egress(["pypi.org", "evil.example"], limit, settings)
    assert refused.value.message == (
        "egress evil.example exceeds the project's limit pypi.org, *.example.org:443 (quota max_egress)"
    )


def test_package_mirrors_come_from_their_urls() -> None:
    settings = Settings(
        package_hosts=(),
        package_pypi_url="http://10.1.2.3:3141/root/pypi/+simple/",
        package_npm_url="https://npm.example",
    )
    assert list(map(str, package_destinations(settings))) == ["10.1.2.3:3141", "npm.example:443"]
    assert package_environment(settings) == {
        "PIP_INDEX_URL": "http://10.1.2.3:3141/root/pypi/+simple/",
        "PIP_TRUSTED_HOST": "10.1.2.3:3141",
        "npm_config_registry": "https://npm.example",
    }
    with pytest.raises(InvalidOption, match="password"):
        package_destinations(Settings(package_pypi_url="https://me:secret@pypi.example/simple"))


def test_a_url_is_named_as_one() -> None:
    with pytest.raises(ValueError, match=r"'https://a.example' is a URL; write HOST or HOST:PORT"):
        parse_destination("https://a.example")
