"""Posts hostile bodies to the application in a process whose memory is limited; prints the statuses and codes.

In a process of its own, whose limit ends it before it takes the memory of the machine.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from support.registered_images import register
from support.served import served

#: Memory beside that of the imported modules.
_FREE_BYTES = 220 * 1024 * 1024


def bodies() -> dict[str, bytes]:
    def zeros(name: str) -> bytes:
        return b'{"%s":[%s0],"code":"x","language":"python"}' % (name.encode(), b"0," * 2_000_000)

    def names(name: str, value: str) -> bytes:
        inner = ",".join(f'"A{number}":{value}' for number in range(200_000))
        return b'{"%s":{%s},"code":"x","language":"python"}' % (name.encode(), inner.encode())

    return {
        **{f"list {name}": zeros(name) for name in ("args", "artifacts", "egress", "labels", "env", "vcpus", "nope")},
        **{f"numbers {name}": names(name, "0") for name in ("env", "labels", "files", "args", "nope")},
        **{f"strings {name}": names(name, '"x"') for name in ("env", "labels", "files", "args", "nope")},
        "unknown": b"{" + b",".join(b'"A%d":0' % number for number in range(200_000)) + b"}",
        "lists": b'{"args":[' + b"[]," * 1_000_000 + b'[]],"code":"x","language":"python"}',
        "deep": b'{"env":' + b"[" * 4_000_000,
        "digits": b'{"vcpus":' + b"9" * 4_000_000 + b"}",
    }


async def main(data_dir: Path) -> None:
    register(data_dir, "python")
    async with served(data_dir) as api:
        headers = {"Content-Type": "application/json"}
        await api.http.post("/v1/jobs", content=b"{}", headers=headers)  # imports all modules
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _FREE_BYTES, size + _FREE_BYTES))
        responses = {}
        for name, body in bodies().items():
            response = await api.http.post("/v1/jobs", content=body, headers=headers)
            responses[name] = [response.status_code, response.json()["code"]]
        print(json.dumps(responses))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
