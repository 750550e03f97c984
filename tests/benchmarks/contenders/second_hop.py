"""The second hop of the two-hop floor: consume the results, loads, dumps, a POST for each 3.5 MB, commit in order.

For each impression a result owes it dumps one visitor as the SDKs send it, and joins nothing: no merging of a user's
events, no division of batches, no retry.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson

from pipeline.kafka.records import lighten_consumers
from tests.benchmarks.contenders.job import POLL_RECORDS, Commits, Job, consumer, ends, run

_MAX_BYTES = 3_500_000
_HEAD = b'{"account_id":"12001","project_id":"12002","revision":"42","client_name":"floor","client_version":"1",'
_HEAD += b'"anonymize_ip":true,"enrich_decisions":true,"visitors":['
_TAIL = b"]}"


def visitor(result: dict[str, Any], number: int, due: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {
            "visitor_id": result["userId"],
            "attributes": [
                {"entity_id": one["entity_id"], "key": one["key"], "type": "custom", "value": one["value"]}
                for one in result["tracking"]["attributes"]
            ],
            "snapshots": [
                {
                    "decisions": [
                        {
                            "campaign_id": due["campaignId"],
                            "experiment_id": due["experimentId"],
                            "variation_id": due["variationId"],
                            "metadata": {
                                "flag_key": due["flagKey"],
                                "rule_key": due["ruleKey"],
                                "rule_type": due["ruleType"],
                                "variation_key": due["variationKey"],
                                "enabled": due["enabled"],
                            },
                        }
                    ],
                    "events": [
                        {
                            "entity_id": due["campaignId"],
                            "uuid": f"{result['source']}-{number}",
                            "key": "campaign_activated",
                            "timestamp": result["timestamp"],
                        }
                    ],
                }
            ],
        }
    )


async def second_hop(job: Job) -> None:
    async with consumer(job) as reader, aiohttp.ClientSession() as session:
        commits = Commits(reader)
        waiting: list[bytes] = []
        octets = 0
        before: dict[Any, int] = {}
        while True:
            polled = await reader.getmany(timeout_ms=200, max_records=POLL_RECORDS)
            posts = 0
            for records in polled.values():
                for record in records:
                    result = orjson.loads(record.value)
                    for number, due in enumerate(result["tracking"]["impressions"]):
                        value = visitor(result, number, due)
                        if octets + len(value) > _MAX_BYTES:
                            await _post(session, job.sink, waiting)
                            waiting, octets, posts = [], 0, posts + 1
                        waiting.append(value)
                        octets += len(value) + 1
            if waiting and not polled:
                await _post(session, job.sink, waiting)
                waiting, octets, posts = [], 0, posts + 1
            # What was read in earlier polls is posted for certain once anything of this one is.
            if posts:
                await commits.done(before)
            before |= ends(polled)


async def _post(session: aiohttp.ClientSession, sink: str, visitors: list[bytes]) -> None:
    body = _HEAD + b",".join(visitors) + _TAIL
    async with session.post(sink, data=body, headers={"Content-Type": "application/json"}) as answer:
        answer.raise_for_status()


if __name__ == "__main__":
    # A floor has what the worker has: of the record too, which costs the client's own most of a microsecond.
    lighten_consumers()
    run(second_hop)
