"""The sections of the settings, each a frozen model that one component gets and no other.

The description of a field is its documentation: README's table is made from it. Durations are seconds; sizes are
bytes, or text such as `64MiB`; limits say whose they are: process, account or record.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from pipeline.messages.decide import DECIDE_OPTIONS

PREFIX = "PIPELINE_"
Role = Literal["decide", "logx", "odp_events"]
ROLES: tuple[Role, ...] = ("decide", "logx", "odp_events")

SDK_KEY_PATTERN = r"^[A-Za-z0-9+/=_-]{1,128}$"
SERVERS = r"^(\[[^\]]+\]|[^,:\s]+):\d{1,5}(,(\[[^\]]+\]|[^,:\s]+):\d{1,5})*$"
_REDIS = re.compile(r"(rediss?|unix)://")
# For the last commit of a hand-over, after the drain.
_HANDOVER_MARGIN = 15.0
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


def _listed(value: object) -> object:
    """In the environment a list is JSON; a bare word is a list of one."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError('not a JSON list; write ["one","two"], or a bare word for a list of one') from None
    return [value] if value else []


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
SdkKeys = Annotated[tuple[Annotated[str, Field(pattern=SDK_KEY_PATTERN)], ...], BeforeValidator(_listed)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class KafkaSettings(Section):
    """The broker, the consumer groups and the limits of the partition loop."""

    bootstrap_servers: str = Field(
        "127.0.0.1:9092",
        pattern=SERVERS,
        description="Brokers to ask first, `host:port`, separated by commas.",
    )
    group_id: str = Field("decision-pipeline", min_length=1, description="Each role's group is `<group_id>.<role>`.")
    group_instance_id: str | None = Field(
        None,
        description="Static membership, e.g. the pod's name: a restart moves no partition. Unset: dynamic membership.",
    )
    client_id: str = Field("decision-pipeline", description="Name of the client in the broker's logs and quotas.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Protocol to the broker: TLS or not, password or not."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="Used with SASL_PLAINTEXT and SASL_SSL."
    )
    sasl_username: str | None = Field(None, description="User for SASL.")
    sasl_password: SecretStr | None = Field(None, description="Password for SASL.")
    sasl_password_file: Path | None = Field(None, description="File that holds the password; read at start.")
    ssl_cafile: Path | None = Field(None, description="Certificates to trust; unset: the system's.")
    ssl_certfile: Path | None = Field(None, description="Client certificate for mutual TLS, PEM.")
    ssl_keyfile: Path | None = Field(None, description="Key of the client certificate, PEM.")
    session_timeout: Seconds = Field(
        30, description="A member silent for so long is put out of its group; a worker that stood still so long ends."
    )
    heartbeat_interval: Seconds = Field(3, description="How often a member reports to its group.")
    max_poll_interval: Seconds = Field(300, description="A member that polls less often leaves its group.")
    rebalance_timeout: Seconds = Field(
        60,
        description="How long the group waits for a member's partitions; at least `PIPELINE_OPS__DRAIN` + 15 s.",
    )
    request_timeout: Seconds = Field(
        20, description="How long one request to the broker may take before it is repeated."
    )
    start_timeout: Seconds = Field(60, description="How long a start waits for a broker that cannot be reached.")
    handover_timeout: Seconds = Field(
        2,
        description="How long a rebalance waits for requests under way to a service; the next owner repeats the rest.",
    )
    commit_interval: Seconds = Field(
        0.5, description="How often offsets are committed, one request for all partitions."
    )
    chunk_records: Count = Field(
        500, le=5000, description="Most records handled at once; fewer where that would take over 10 ms."
    )
    window_records: Count = Field(10_000, description="Most records of a partition under way, role decide (process).")
    logx_window_records: Count = Field(
        50_000, description="Most records of a partition under way, role logx, as far as held_bytes allows (process)."
    )
    held_bytes: ByteSize = Field(
        ByteSize(32 * 1024**2), gt=0,
        description="Most memory under way: records, results, 1 KiB a record, 3 in role decide (role, process).",
    )  # fmt: skip
    max_record_bytes: ByteSize = Field(
        ByteSize(1024**2),
        gt=0,
        description="A larger record is a dead letter, unread; also the largest result written.",
    )
    max_dead_letter_bytes: ByteSize = Field(
        ByteSize(2 * 1024**2),
        gt=0,
        description="A dead letter larger than this is a pointer without the original bytes.",
    )
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "zstd",
        description="Codec of the records written. Without a plug-in, Node's kafkajs reads only `none` and `gzip`.",
    )
    fetch_bytes: ByteSize = Field(
        ByteSize(256 * 1024), gt=0, description="Most bytes fetched from a partition at once (process, per partition)."
    )

    @model_validator(mode="after")
    def _coherent(self) -> KafkaSettings:
        mistakes = []
        if self.security_protocol.startswith("SASL") and not self.sasl_username:
            mistakes.append("sasl_username is needed with SASL")
        if self.security_protocol.startswith("SASL") and not (self.sasl_password or self.sasl_password_file):
            mistakes.append("sasl_password or sasl_password_file is needed with SASL")
        if self.heartbeat_interval * 3 > self.session_timeout:
            mistakes.append("session_timeout must be at least three times heartbeat_interval")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            mistakes.append("ssl_certfile and ssl_keyfile go together")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


class TopicsSettings(Section):
    """Names of the topics, and what `pipeline topics create` gives them."""

    decide_requests: str = Field("decide.requests", description="Decide requests, written by your services.")
    decide_results: str = Field("decide.results", description="One result for each request, on its partition number.")
    track_events: str = Field("track.events", description="Conversions, written by your services.")
    odp_events: str = Field(
        "odp.events", description="Events for the customer data platform, written by your services."
    )
    dead_letters: str = Field("dead.letters", description="Records that can never be processed, with the reason.")
    partitions: Count = Field(16, description="Partitions of each topic that `topics create` makes.")
    replication_factor: Count = Field(3, le=32767, description="Copies of each topic that `topics create` makes.")
    retention: Seconds = Field(7 * 86400, description="How long `topics create` lets records live.")
    dead_letters_retention: Seconds = Field(28 * 86400, description="The same for dead letters.")


class OptimizelySettings(Section):
    """SDK keys and where their datafiles come from."""

    sdk_keys: SdkKeys = Field((), description="SDK keys, one for each environment of each project.")
    datafile_url_template: str = Field(
        "https://cdn.optimizely.com/datafiles/%s.json", description="Where a datafile is; `%s` is the SDK key."
    )
    poll_interval: Seconds = Field(60, description="How often each datafile is asked for, conditionally.")
    request_timeout: Seconds = Field(10, description="Deadline of one datafile request.")
    max_datafile_bytes: ByteSize = Field(ByteSize(32 * 1024**2), gt=0, description="A larger datafile is refused.")
    stale_after: Seconds = Field(
        300, description="Age of the last good answer from which a datafile is reported as stale."
    )
    allow_older_revision: bool = Field(
        False,
        description="Take a datafile whose revision number is lower than the one in use; otherwise it is refused.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> OptimizelySettings:
        if self.datafile_url_template.count("%s") != 1:
            raise ValueError("datafile_url_template must hold %s once, where the SDK key goes")
        if len(set(self.sdk_keys)) != len(self.sdk_keys):
            raise ValueError("sdk_keys holds a key twice")
        return self


class DecideSettings(Section):
    """Defaults for decide requests."""

    max_age: float = Field(
        0, ge=0, le=10**9, description="A request older than this is answered `request expired`; 0: never."
    )
    copy_headers: Names = Field((), description="Headers of a request that its result carries as well.")
    options: Names = Field((), description="decideOptions added to every request.")

    @model_validator(mode="after")
    def _coherent(self) -> DecideSettings:
        unknown = sorted(set(self.options) - DECIDE_OPTIONS)
        if unknown:
            raise ValueError(f"options: {', '.join(unknown)} is none of {', '.join(sorted(DECIDE_OPTIONS))}")
        return self


class OdpSettings(Section):
    """Segments by GraphQL, and ODP events."""

    allowed_hosts: Names = Field(
        ("api.zaius.com", "*.zaius.com", "*.optimizely.com"),
        description="Hosts a datafile may name as its ODP; `*.` stands for any subdomain.",
    )
    allow_http: bool = Field(False, description="Allow ODP hosts without TLS: for stand-ins on your own machine.")
    fetch_deadline: Seconds = Field(5, description="How long a user's segments are waited for, tries included.")
    request_timeout: Seconds = Field(3, description="Deadline of one GraphQL request.")
    max_users_per_query: int = Field(50, ge=1, le=1000, description="Most users in one GraphQL query.")
    max_in_flight: Count = Field(16, description="Most GraphQL requests under way at once (account, in each process).")
    max_linger: float = Field(0.025, ge=0, description="How long a user may wait for others to share its query.")
    max_waiting_users: Count = Field(
        50_000,
        description="Most users waiting for their segments; further ones are answered with an error (process). "
        "About 9,000 wait at most with the default of held_bytes, which stops reading first.",
    )
    cache_size: int = Field(10_000, ge=0, description="Users whose segments are remembered (process); 0 disables it.")
    cache_timeout: float = Field(600, ge=0, description="How long segments are remembered; 0: for ever.")
    event_batch_size: int = Field(
        500, ge=1, le=500, description="Most events in one request to ODP (its own limit is 500)."
    )
    event_linger: float = Field(1, ge=0, description="How long an ODP event may wait for others.")
    event_timeout: Seconds = Field(10, description="Deadline of one request with events.")
    event_max_in_flight: Count = Field(4, description="Most event requests under way at once (process).")


def _check_redis(url: str) -> None:
    """Raises ValueError, without any of the address in it: it may hold a password."""
    # Only where there is one: it takes a tenth of a second.
    from redis.asyncio import ConnectionPool

    if not _REDIS.match(url):
        raise ValueError("redis_url must begin with redis://, rediss:// or unix://")
    try:
        # Made, not connected: only this looks at all of its parts.
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - whatever the library makes of it, it cannot be used
        advice = "encode / @ : ? # % in a password as %2F %40 %3A %3F %23 %25, and check the rest"
        raise ValueError(f"redis_url cannot be used: {advice}") from None


class ProfilesSettings(Section):
    """Sticky profiles: a user keeps an experiment's variation when its traffic changes. Off unless one is set."""

    redis_url: SecretStr | None = Field(
        None,
        description="Redis 6.2 or later, or Valkey, that keeps the profiles, e.g. `rediss://:password@host:6379/0`.",
    )
    single_worker: bool = Field(
        False,
        description="Keep profiles in memory instead, until the worker ends; right only where it is the only one.",
    )
    key_prefix: str = Field("profile:", description="Before the user id in a key; empty for a database of the Agent.")
    ttl: float = Field(0, ge=0, description="How long a profile lives after it was last saved; 0: for ever.")
    timeout: Seconds = Field(0.25, description="Deadline of one request to Redis; then it is decided without profiles.")
    max_users: Count = Field(100_000, description="Most profiles in memory (process).")

    @model_validator(mode="after")
    def _coherent(self) -> ProfilesSettings:
        if self.redis_url is not None:
            _check_redis(self.redis_url.get_secret_value())
        if self.redis_url is not None and self.single_worker:
            raise ValueError("redis_url and single_worker exclude each other")
        return self


class CmabSettings(Section):
    """Predictions for contextual bandits (CMAB)."""

    prediction_url_template: str = Field(
        "https://prediction.cmab.optimizely.com/predict/%s", pattern=r"^https?://",
        description="Where predictions come from; `%s` is the rule's id.",
    )  # fmt: skip
    fetch_deadline: Seconds = Field(20, description="How long a prediction is waited for, tries included.")
    request_timeout: Seconds = Field(10, description="Deadline of one request.")
    retries: int = Field(1, ge=0, le=10, description="How often a request that failed is repeated.")
    cache_size: int = Field(10_000, ge=0, description="Predictions remembered, by user and rule (process); 0: none.")
    cache_timeout: float = Field(1800, ge=0, description="How long a prediction is remembered; 0: for ever.")
    max_in_flight: Count = Field(
        64,
        description="Most prediction requests under way at once (process), half of them for rules in an outage.",
    )
    max_waiting: Count = Field(
        10_000,
        description="Most predictions waited for; a decision that needs one more is an error (process). "
        "About 9,000 are with the default of held_bytes, which stops reading first.",
    )

    @model_validator(mode="after")
    def _coherent(self) -> CmabSettings:
        if self.prediction_url_template.count("%s") != 1:
            raise ValueError("prediction_url_template must hold %s once, where the rule's id goes")
        return self


class LogxSettings(Section):
    """Impressions and conversions on their way to Optimizely."""

    url: str = Field("https://logx.optimizely.com/v1/events", description="Where events go.", pattern=r"^https?://")
    eu_url: str = Field(
        "https://eu.logx.optimizely.com/v1/events",
        description="The same, for datafiles of region EU.",
        pattern=r"^https?://",
    )
    batch_events: int = Field(10_000, ge=1, le=10_000, description="Most events in one dispatch.")
    batch_bytes: ByteSize = Field(
        ByteSize(3_500_000),
        gt=0,
        le=3_500_000,
        description="Most bytes in one dispatch (Optimizely's limit is 3.5 MB).",
    )
    linger: float = Field(1, ge=0, description="How long an event may wait for others.")
    request_timeout: Seconds = Field(10, description="Deadline of one dispatch.")
    max_in_flight: Count = Field(4, description="Most dispatches under way at once (process).")


class OpsSettings(Section):
    """Health, readiness and metrics; logs; the end of the process."""

    host: str = Field("127.0.0.1", description="Address that /health, /ready and /metrics listen on.")
    port: int = Field(8088, ge=0, le=65535, description="Their port; 0 takes a free one and logs it.")
    drain: Seconds = Field(25, description="How long a stop may take, in the order of the flow; then the process ends.")
    stuck_after: Seconds = Field(60, description="A partition with work that did not move for so long is unhealthy.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )


class Settings(Section):
    """All settings of a worker."""

    roles: Annotated[tuple[Role, ...], BeforeValidator(_listed)] = Field(
        ROLES, min_length=1, description="Roles of this process."
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    optimizely: OptimizelySettings = OptimizelySettings()
    decide: DecideSettings = DecideSettings()
    odp: OdpSettings = OdpSettings()
    profiles: ProfilesSettings = ProfilesSettings()
    cmab: CmabSettings = CmabSettings()
    logx: LogxSettings = LogxSettings()
    ops: OpsSettings = OpsSettings()

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        mistakes = []
        if self.kafka.rebalance_timeout < self.ops.drain + _HANDOVER_MARGIN:
            mistakes.append(
                f"{PREFIX}KAFKA__REBALANCE_TIMEOUT: must be at least {_HANDOVER_MARGIN:g} s more than "
                f"{PREFIX}OPS__DRAIN: partitions are drained and committed before they are given back"
            )
        if len(set(self.roles)) != len(self.roles):
            mistakes.append(f"{PREFIX}ROLES: holds a role twice")
        names = [value for _, value in self.topics if isinstance(value, str)]
        if len(set(names)) != len(names):
            mistakes.append(f"{PREFIX}TOPICS: two of them have one name")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self


def masked(sdk_key: str) -> str:
    """An SDK key as it may stand in logs and metric labels: enough to tell two apart, not enough to use."""
    begin = sdk_key[:4] if len(sdk_key) > 8 else ""
    return f"{begin}***{blake2b(sdk_key.encode(), digest_size=2).hexdigest()}"
