"""Which requests with a session's cookie are of this server's own pages."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from belljar.control.api.same_origin import check_same_origin
from belljar.model.errors import CrossSiteRequest

WEBSOCKET: dict[str, Any] = {"type": "websocket", "scheme": "wss", "path": "/v1/sandboxes/sb_1/ports/80/"}


@pytest.mark.parametrize("own", [{"origin": "https://own.example"}, {"sec-fetch-site": "same-origin"}])
def test_a_page_of_this_server_may_open_a_websocket(own: dict[str, str]) -> None:
    check_same_origin(WEBSOCKET, Headers({"host": "own.example", **own}), None)


@pytest.mark.parametrize(
    "foreign", [{}, {"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"}]
)
def test_another_page_may_not_open_a_websocket(foreign: dict[str, str]) -> None:
    with pytest.raises(CrossSiteRequest):
        check_same_origin(WEBSOCKET, Headers({"host": "own.example", **foreign}), None)
