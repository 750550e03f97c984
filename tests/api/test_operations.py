"""/health, /ready and /metrics over a real socket: what they say, and when they say no."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import structlog
from prometheus_client.parser import text_string_to_metric_families

from pipeline.api.operations import Operations
from pipeline.errors import StartFailed
from pipeline.metrics import Metrics
from pipeline.outage import UNAVAILABLE, Outage, Upstream
from pipeline.settings import OpsSettings
from tests.handlers.chunks import new_metrics


class Worker:
    """What the endpoints ask."""

    def __init__(self) -> None:
        self.stands: list[str] = []
        self.waits: list[str] = []
        self.clock = 1000.0
        self.upstream = Upstream("logx", new_metrics(), clock=lambda: self.clock)

    def stuck(self) -> list[str]:
        return self.stands

    def awaited(self) -> list[str]:
        return self.waits

    def outages(self) -> list[Outage]:
        return self.upstream.outages()

    def status(self) -> Mapping[str, Any]:
        return {"roles": {"decide": {"partitions": 4}}}


class Bench:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.worker = Worker()
        self.metrics: Metrics = new_metrics()
        self.operations = Operations(self.worker, self.metrics.registry, OpsSettings(port=0))
        self._session = session

    async def get(self, path: str) -> tuple[int, Any]:
        async with self._session.get(f"http://127.0.0.1:{self.operations.port}{path}") as answer:
            return answer.status, await answer.json()

    async def text(self, path: str) -> tuple[str, str]:
        async with self._session.get(f"http://127.0.0.1:{self.operations.port}{path}") as answer:
            assert answer.status == 200
            return answer.headers["Content-Type"], await answer.text()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with aiohttp.ClientSession() as session:
        found = Bench(session)
        await found.operations.start()
        yield found
        await found.operations.close()


@pytest.mark.asyncio
async def test_health_is_ok_while_work_moves_and_503_when_it_stands_still(bench: Bench) -> None:
    status, document = await bench.get("/health")
    assert (status, document) == (200, {"status": "ok", "stuck": [], "roles": {"decide": {"partitions": 4}}})
    bench.worker.stands = ["requests-3 has had unfinished work for 61 s"]
    status, document = await bench.get("/health")
    assert (status, document["status"]) == (503, "stuck")
    assert document["stuck"] == ["requests-3 has had unfinished work for 61 s"]
    bench.worker.stands = []
    assert (await bench.get("/health"))[0] == 200


@pytest.mark.asyncio
async def test_ready_says_what_is_waited_for(bench: Bench) -> None:
    bench.worker.waits = ["waiting for the datafiles"]
    assert await bench.get("/ready") == (
        503,
        {"status": "waiting", "awaited": ["waiting for the datafiles"], "outages": []},
    )
    # Not ready is not unhealthy: a restart would not help.
    assert (await bench.get("/health"))[0] == 200
    bench.worker.waits = []
    assert await bench.get("/ready") == (200, {"status": "ready", "awaited": [], "outages": []})


@pytest.mark.asyncio
async def test_metrics_are_read_by_prometheus_and_each_has_its_help(bench: Bench) -> None:
    bench.metrics.rebalances.labels("decide").inc(3)
    content_type, text = await bench.text("/metrics")
    assert content_type.startswith("text/plain")
    everything = {family.name: family for family in text_string_to_metric_families(text)}
    # Beside each counter and histogram the client says when it was made.
    families = {name: family for name, family in everything.items() if not name.endswith("_created")}
    # Those of the process are its own library's, names, words and all.
    of_process = {name for name in families if name.startswith("process_")}
    declared = {family.name: family for family in bench.metrics.registry.collect()}
    assert declared.keys() == families.keys()
    assert of_process >= {"process_resident_memory_bytes", "process_cpu_seconds", "process_start_time_seconds"}
    for name, family in families.items():
        if name in of_process:
            continue
        assert name.startswith("decision_pipeline_")
        assert family.documentation.endswith("."), f"{name} is not documented"
        assert family.documentation == declared[name].documentation
        assert family.type in ("counter", "gauge", "histogram")
    (sample,) = [one for one in families["decision_pipeline_rebalances"].samples if one.name.endswith("_total")]
    assert (sample.labels, sample.value) == ({"role": "decide"}, 3.0)


@pytest.mark.asyncio
async def test_other_paths_and_methods_are_nothing(bench: Bench) -> None:
    async with aiohttp.ClientSession() as session:
        address = f"http://127.0.0.1:{bench.operations.port}"
        async with session.get(f"{address}/") as answer:
            assert answer.status == 404
        async with session.post(f"{address}/health") as answer:
            assert answer.status == 405


@pytest.mark.asyncio
async def test_a_port_in_use_is_named_with_the_setting_that_changes_it(bench: Bench) -> None:
    taken = bench.operations.port
    other = Operations(Worker(), bench.metrics.registry, OpsSettings(port=taken))
    with pytest.raises(StartFailed, match=rf"127\.0\.0\.1:{taken} cannot be listened on .*PIPELINE_OPS__PORT"):
        await other.start()


@pytest.mark.asyncio
async def test_an_address_that_is_not_this_machines_is_named_with_the_setting_that_changes_it() -> None:
    # 192.0.2.0/24 is for documentation: no machine has an address of it.
    elsewhere = Operations(Worker(), new_metrics().registry, OpsSettings(host="192.0.2.1", port=0))
    with pytest.raises(StartFailed, match=r"192\.0\.2\.1:0 cannot be listened on .*: set PIPELINE_OPS__HOST"):
        await elsewhere.start()


@pytest.mark.asyncio
async def test_closing_what_was_never_started_is_nothing() -> None:
    await Operations(Worker(), new_metrics().registry, OpsSettings(port=0)).close()


@pytest.mark.asyncio
async def test_an_outage_is_said_with_its_seconds_and_makes_nobody_unready(bench: Bench) -> None:
    outage = bench.worker.upstream.outage(begins="held", ends="resumed", log=structlog.get_logger(), account="7")
    outage.begin(UNAVAILABLE, "HTTP 503")
    bench.worker.clock += 12
    assert await bench.get("/ready") == (
        200,
        {
            "status": "ready",
            "awaited": [],
            "outages": ["logx (account 7) has been unavailable for 12 s: HTTP 503"],
        },
    )
    assert (await bench.get("/health"))[0] == 200
    outage.end()
    assert (await bench.get("/ready"))[1]["outages"] == []
