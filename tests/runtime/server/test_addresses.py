"""Names and addresses as browsers send and take them."""

from __future__ import annotations

import pytest

from everframe.engines.errors import UserError
from everframe.runtime.server.addresses import asked_name, host_name, is_loopback, listening, origin, page_of
from everframe.runtime.server.config import Osc
from everframe.runtime.server.orders.osc import Listener


@pytest.mark.parametrize(
    ("host", "page"),
    [
        ("127.0.0.1", "http://127.0.0.1:80/"),
        ("::1", "http://[::1]:80/"),
        ("[::1]", "http://[::1]:80/"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80/"),
        ("0.0.0.0", "http://127.0.0.1:80/"),
        ("::", "http://[::1]:80/"),
        ("lobby.example", "http://lobby.example:80/"),
    ],
)
def test_the_page_is_an_address_that_a_browser_takes(host: str, page: str) -> None:
    assert page_of(host, 80) == page


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("Signage.Example.", "signage.example"),
        ("::1", "[::1]"),
        ("[FE80::1]", "[fe80::1]"),
        ("10.0.0.5", "10.0.0.5"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("*", "*"),
        ("signage_1", "signage_1"),
    ],
)
def test_names_are_compared_as_browsers_send_them(entry: str, name: str) -> None:
    assert host_name(entry) == name
    assert asked_name(f"{name.upper()}:8080") == name


@pytest.mark.parametrize("entry", ["", "http://a", "a:8080", "a/b", "*.a", "a b", "[a]", "a..b", "-a", "[::1]:80", "."])
def test_names_that_no_browser_can_send_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="never what a browser asks for"):
        host_name(entry)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0x7F.1", "127.0.0.1.1", "10.0.0.256", "1."])
def test_addresses_that_are_not_written_out_are_not_listened_on(host: str) -> None:
    with pytest.raises(UserError, match=r"server\.host: found .*, expected a name or a whole address"):
        listening(host, 0)


@pytest.mark.parametrize("host", ["", "[]", "127.1"])
def test_osc_listens_where_it_is_told_alone(host: str) -> None:
    """Nothing would be every address, of what knows no authentication."""
    with pytest.raises(UserError, match=r"osc\.host: found "):
        Listener(Osc(host=host, port=1), None, dict)  # type: ignore[arg-type]


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost", "LOCALHOST.")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")))


def test_origins() -> None:
    assert origin("HTTPS://Intranet.Example:8443") == "https://intranet.example:8443"
    assert origin("*") == "*"
    for bad in ("intranet.example", "https://a/b", "https://*.a", "ftp://a", "https://a; script-src *", "'none'", ""):
        with pytest.raises(ValueError, match=r"expected|never"):
            origin(bad)
