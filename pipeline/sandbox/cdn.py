"""Stand-in for the CDN that serves datafiles: GET /datafiles/<key>.json with ETag, Last-Modified and 304.

A key it does not have gets 403, as the CDN answers. `POST` to the same address publishes a document, with or without
`.json`. Controls: `denied`, keys that get 403; `alternate`, keys whose present and previous document are answered in
turn, as edges that disagree do; `revision`, an object key -> text that publishes the present document under another
revision.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from typing import Any, ClassVar, NamedTuple

import orjson
from aiohttp import web

from pipeline.sandbox.project_data import datafiles
from pipeline.sandbox.server import Handler, StandIn, answer_json, argument_parser, serve

_PATH = "/datafiles/{key}.json"


class Published(NamedTuple):
    body: bytes
    etag: str
    modified: int


class Cdn(StandIn):
    service = "cdn"
    controls: ClassVar[Mapping[str, Any]] = {"denied": [], "alternate": [], "revision": {}}
    meanings: ClassVar[Mapping[str, str]] = {
        "denied": "SDK keys that get 403",
        "alternate": "SDK keys whose present and previous datafile are answered in turn",
        "revision": "SDK key -> text: publishes its present datafile under that revision",
    }

    def __init__(self, initial: Mapping[str, bytes]) -> None:
        super().__init__()
        self._documents = dict(initial)
        self._modified = 0
        self.reset()

    def reset(self) -> None:
        self._versions: dict[str, list[Published]] = {}
        self._answers: dict[str, Counter[int]] = {}
        self._turn: Counter[str] = Counter()
        for key, body in self._documents.items():
            self._publish(key, body)

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("GET", _PATH): self._get, ("HEAD", _PATH): self._get}

    def application(self) -> web.Application:
        application = super().application()
        for path in (_PATH, "/datafiles/{key}"):
            application.router.add_post(path, self._post)
        return application

    def refusal(self, controls: Mapping[str, Any]) -> str | None:
        fault = super().refusal(controls)
        known = self._documents if controls.get("reset") else self._versions
        unknown = controls.get("revision", {}).keys() - known.keys() if fault is None else set()
        return f"revision of an unknown key: {', '.join(sorted(unknown))}" if unknown else fault

    def ordered(self, controls: Mapping[str, Any]) -> None:
        super().ordered(controls)
        for key, revision in controls.get("revision", {}).items():
            document = orjson.loads(self._versions[key][-1].body)
            self._publish(key, orjson.dumps(document | {"revision": revision}))

    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        return {
            "by_key": {
                key: {str(status): count for status, count in answers.items()} for key, answers in self._answers.items()
            }
        }

    async def _post(self, request: web.Request) -> web.Response:
        published = self._publish(request.match_info["key"], await request.read())
        return answer_json({"etag": published.etag})

    async def _get(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        response = self._answer_for(key, request)
        self._answers.setdefault(key, Counter())[response.status] += 1
        return response

    def _answer_for(self, key: str, request: web.Request) -> web.Response:
        versions = self._versions.get(key)
        if versions is None or key in self.faults["denied"]:
            return web.Response(status=403, text="Access denied")
        published = versions[-1]
        if key in self.faults["alternate"]:
            self._turn[key] += 1
            published = versions[-1 - self._turn[key] % min(2, len(versions))]
        headers = {"ETag": published.etag, "Last-Modified": formatdate(published.modified, usegmt=True)}
        if _is_current(published, request):
            return web.Response(status=304, headers=headers)
        return web.Response(body=published.body, headers=headers, content_type="application/json")

    def _publish(self, key: str, body: bytes) -> Published:
        versions = self._versions.setdefault(key, [])
        # Last-Modified has whole seconds: two documents within one would look the same.
        self._modified = max(int(time.time()), self._modified + 1)
        versions.append(Published(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', self._modified))
        del versions[:-2]
        return versions[-1]


def _is_current(published: Published, request: web.Request) -> bool:
    """An ETag goes before a date (RFC 9110, 13.2.2)."""
    if "If-None-Match" in request.headers:
        wanted = request.headers["If-None-Match"]
        return wanted.strip() == "*" or published.etag in wanted
    try:
        since = parsedate_to_datetime(request.headers.get("If-Modified-Since", ""))
    except ValueError:
        return False  # No date that can be read is no condition (13.1.3).
    return since.timestamp() >= published.modified


def main() -> None:
    parser = argument_parser("Stand-in for the CDN of datafiles")
    parser.add_argument("--odp-host", default="http://127.0.0.1:1", help="host that the datafiles name as their ODP")
    options = parser.parse_args()
    serve(Cdn(datafiles(options.odp_host)), options.port)


if __name__ == "__main__":
    main()
