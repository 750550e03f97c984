"""The sections of the settings, each a frozen model that one component gets and no other.

The description of a field is its documentation: README's table is made from it. Durations are seconds; sizes are
bytes, both also as text with a unit (`values.py`); limits say whose they are: process, account or record.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.messages.decide import DECIDE_OPTIONS, MAX_KEYS
from pipeline.settings import conflicts
from pipeline.settings.masking import masked
from pipeline.settings.values import (
    Count,
    File,
    Flag,
    Hosts,
    KafkaSeconds,
    KafkaSize,
    MayBeEmpty,
    Names,
    RedisUrl,
    SdkKeys,
    Seconds,
    SecondsOrZero,
    Secret,
    Servers,
    Size,
    Text,
    Topic,
    Url,
    Whole,
    one_of,
    template,
    words_of,
)

PREFIX = "PIPELINE_"
Role = Literal["decide", "logx", "odp_events"]
ROLES: tuple[Role, ...] = ("decide", "logx", "odp_events")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class KafkaSettings(Section):
    """The broker, the consumer groups and the limits of the partition loop."""

    bootstrap_servers: Servers = Field(
        "127.0.0.1:9092",
        description="Brokers to ask first, `host:port`, separated by commas.",
    )
    group_id: Text = Field("decision-pipeline", max_length=200, description="Each role's group is `<group_id>.<role>`.")
    group_instance_id: Text | None = Field(
        None,
        description="Static membership, e.g. the pod's name: a restart moves no partition. Unset: dynamic membership.",
    )
    client_id: Text = Field("decision-pipeline", description="Name of the client in the broker's logs and quotas.")
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        one_of("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    ] = Field("PLAINTEXT", description="Protocol to the broker: TLS or not, password or not.")
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    ] = Field("SCRAM-SHA-512", description="Used with SASL_PLAINTEXT and SASL_SSL.")
    sasl_username: Text | None = Field(None, description="User for SASL.")
    sasl_password: Secret | None = Field(None, description="Password for SASL.")
    sasl_password_file: File | None = Field(
        None,
        description="File that holds the password, instead; read at start. A newline at its end is not part of it.",
    )
    ssl_cafile: File | None = Field(None, description="Certificates to trust; unset: the system's.")
    ssl_certfile: File | None = Field(None, description="Client certificate for mutual TLS, PEM.")
    ssl_keyfile: File | None = Field(None, description="Key of the client certificate, PEM.")
    session_timeout: KafkaSeconds = Field(
        30, description="A member silent for so long is put out of its group; a worker that stood still so long ends."
    )
    heartbeat_interval: KafkaSeconds = Field(3, description="How often a member reports to its group.")
    max_poll_interval: KafkaSeconds = Field(300, description="A member that polls less often leaves its group.")
    rebalance_timeout: KafkaSeconds = Field(
        60,
        description="How long the group waits for a member's partitions; at least `PIPELINE_OPS__DRAIN` + 15 s.",
    )
    request_timeout: KafkaSeconds = Field(
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
    held_bytes: Size = Field(
        ByteSize(32 * 1024**2),
        description="Most memory under way: records, results, 1 KiB a record, 3 in role decide (role, process).",
    )  # fmt: skip
    max_record_bytes: KafkaSize = Field(
        ByteSize(1024**2),
        description="A larger record is a dead letter, unread; also the largest result written.",
    )
    max_dead_letter_bytes: KafkaSize = Field(
        ByteSize(2 * 1024**2),
        description="A dead letter larger than this is a pointer without the original bytes.",
    )
    compression_type: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"], one_of("none", "gzip", "snappy", "lz4", "zstd")
    ] = Field(
        "zstd",
        description="Codec of the records written. Without a plug-in, Node's kafkajs reads only `none` and `gzip`.",
    )
    fetch_bytes: KafkaSize = Field(
        ByteSize(256 * 1024), description="Most bytes fetched from a partition at once (process, per partition)."
    )

    @model_validator(mode="after")
    def _coherent(self, info: ValidationInfo) -> KafkaSettings:
        conflicts.report(conflicts.of_kafka(self), info)
        return self


class TopicsSettings(Section):
    """Names of the topics, and what `pipeline topics create` gives them."""

    decide_requests: Topic = Field("decide.requests", description="Decide requests, written by your services.")
    decide_results: Topic = Field("decide.results", description="One result for each request, on its partition number.")
    track_events: Topic = Field("track.events", description="Conversions, written by your services.")
    odp_events: Topic = Field(
        "odp.events", description="Events for the customer data platform, written by your services."
    )
    dead_letters: Topic = Field("dead.letters", description="Records that can never be processed, with the reason.")
    partitions: Count = Field(16, le=2**31 - 1, description="Partitions of each topic that `topics create` makes.")
    replication_factor: Count = Field(3, le=32767, description="Copies of each topic that `topics create` makes.")
    retention: Seconds = Field(7 * 86400, description="How long `topics create` lets records live.")
    dead_letters_retention: Seconds = Field(28 * 86400, description="The same for dead letters.")

    @model_validator(mode="after")
    def _coherent(self, info: ValidationInfo) -> TopicsSettings:
        conflicts.report(conflicts.of_topics(self), info)
        return self


class OptimizelySettings(Section):
    """SDK keys and where their datafiles come from."""

    sdk_keys: SdkKeys = Field((), description="SDK keys, one for each environment of each project.")
    datafile_url_template: Annotated[Url, template("the SDK key")] = Field(
        "https://cdn.optimizely.com/datafiles/%s.json", description="Where a datafile is; `%s` is the SDK key."
    )
    poll_interval: Seconds = Field(60, description="How often each datafile is asked for, conditionally.")
    request_timeout: Seconds = Field(10, description="Deadline of one datafile request.")
    max_datafile_bytes: Size = Field(ByteSize(32 * 1024**2), description="A larger datafile is refused.")
    stale_after: Seconds = Field(
        300, description="Age of the last good answer from which a datafile is reported as stale."
    )
    allow_older_revision: Flag = Field(
        False,
        description="Take a datafile whose revision number is lower than the one in use; otherwise it is refused.",
    )

    @field_validator("sdk_keys")
    @classmethod
    def _different(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise ValueError(f"holds the key {masked(twice)} twice")
        return keys


class DecideSettings(Section):
    """Defaults for decide requests."""

    max_age: SecondsOrZero = Field(0, description="A request older than this is answered `request expired`; 0: never.")
    max_keys: Whole = Field(
        1000, ge=1, le=MAX_KEYS,
        description="Most different flags that a request may name in `keys`: this worker's limit, beside the "
        f"contract's of {MAX_KEYS:,}. A request with more is answered `error parsing request body`.",
    )  # fmt: skip
    copy_headers: Names = Field((), description="Headers of a request that its result carries as well.")
    options: Annotated[tuple[str, ...], BeforeValidator(words_of(sorted(DECIDE_OPTIONS))), MayBeEmpty()] = Field(
        (), description="decideOptions added to every request."
    )


class OdpSettings(Section):
    """Segments by GraphQL, and ODP events."""

    allowed_hosts: Hosts = Field(
        ("api.zaius.com", "*.zaius.com", "*.optimizely.com"),
        description="Hosts a datafile may name as its ODP; `*.` stands for any subdomain.",
    )
    allow_http: Flag = Field(False, description="Allow ODP hosts without TLS: for stand-ins on your own machine.")
    fetch_deadline: Seconds = Field(
        5, description="How long a request waits for its user's segments, tries included; less where its time ends."
    )
    request_timeout: Seconds = Field(3, description="Deadline of one GraphQL request.")
    max_users_per_query: Whole = Field(50, ge=1, le=1000, description="Most users in one GraphQL query.")
    max_in_flight: Count = Field(16, description="Most GraphQL requests under way at once (account, in each process).")
    max_linger: SecondsOrZero = Field(0.025, description="How long a user may wait for others to share its query.")
    max_waiting_users: Count = Field(
        50_000,
        description="Most requests waiting for segments; further ones are answered with an error (process). "
        "About 9,000 wait at most with the default of held_bytes, which stops reading first.",
    )
    cache_size: Whole = Field(10_000, ge=0, description="Users whose segments are remembered (process); 0 disables it.")
    cache_timeout: SecondsOrZero = Field(600, description="How long segments are remembered; 0: for ever.")
    unknown_user_timeout: SecondsOrZero = Field(
        1, description="How long a user is remembered to be unknown to ODP, an error of its requests; 0: not at all."
    )
    event_batch_size: Whole = Field(
        500, ge=1, le=500, description="Most events in one request to ODP (its own limit is 500)."
    )
    event_linger: SecondsOrZero = Field(1, description="How long an ODP event may wait for others.")
    event_timeout: Seconds = Field(10, description="Deadline of one request with events.")
    event_max_in_flight: Count = Field(4, description="Most event requests under way at once (process).")


class ProfilesSettings(Section):
    """Sticky profiles: a user keeps an experiment's variation when its traffic changes. Off unless one is set."""

    redis_url: RedisUrl | None = Field(
        None,
        description="Redis 6.2 or later, or Valkey, that keeps the profiles, e.g. `rediss://:password@host:6379/0`.",
    )
    single_worker: Flag = Field(
        False,
        description="Keep profiles in memory instead, until the worker ends; right only where it is the only one.",
    )
    key_prefix: Annotated[str, MayBeEmpty()] = Field(
        "profile:", description="Before the user id in a key; empty for a database of the Agent."
    )
    ttl: SecondsOrZero = Field(0, description="How long a profile lives after it was last saved; 0: for ever.")
    timeout: Seconds = Field(0.25, description="Deadline of one request to Redis; then it is decided without profiles.")
    max_users: Count = Field(100_000, description="Most profiles in memory (process).")

    @model_validator(mode="after")
    def _coherent(self, info: ValidationInfo) -> ProfilesSettings:
        conflicts.report(conflicts.of_profiles(self), info)
        return self


class CmabSettings(Section):
    """Predictions for contextual bandits (CMAB)."""

    prediction_url_template: Annotated[Url, template("the rule's id")] = Field(
        "https://prediction.cmab.optimizely.com/predict/%s",
        description="Where predictions come from; `%s` is the rule's id.",
    )
    fetch_deadline: Seconds = Field(20, description="How long a prediction is waited for, tries included.")
    request_timeout: Seconds = Field(10, description="Deadline of one request.")
    retries: Whole = Field(1, ge=0, le=10, description="How often a request that failed is repeated.")
    cache_size: Whole = Field(10_000, ge=0, description="Predictions remembered, by user and rule (process); 0: none.")
    cache_timeout: SecondsOrZero = Field(1800, description="How long a prediction is remembered; 0: for ever.")
    max_in_flight: Count = Field(
        64,
        description="Most prediction requests under way at once (process), half of them for rules in an outage.",
    )
    max_waiting: Count = Field(
        10_000,
        description="Most predictions waited for; a decision that needs one more is an error (process). "
        "About 9,000 are with the default of held_bytes, which stops reading first.",
    )


class LogxSettings(Section):
    """Impressions and conversions on their way to Optimizely."""

    url: Url = Field("https://logx.optimizely.com/v1/events", description="Where events go.")
    eu_url: Url = Field("https://eu.logx.optimizely.com/v1/events", description="The same, for datafiles of region EU.")
    batch_events: Whole = Field(10_000, ge=1, le=10_000, description="Most events in one dispatch.")
    batch_bytes: Size = Field(
        ByteSize(3_500_000),
        le=3_500_000,
        description="Most bytes in one dispatch (Optimizely's limit is 3.5 MB).",
    )
    linger: SecondsOrZero = Field(1, description="How long an event may wait for others.")
    request_timeout: Seconds = Field(10, description="Deadline of one dispatch.")
    max_in_flight: Count = Field(4, description="Most dispatches under way at once (process).")


class OpsSettings(Section):
    """Health, readiness and metrics; logs; the end of the process."""

    host: Text = Field("127.0.0.1", description="Address that /health, /ready and /metrics listen on.")
    port: Whole = Field(8088, ge=0, le=65535, description="Their port; 0 takes a free one and logs it.")
    drain: Seconds = Field(25, description="How long a stop may take, in the order of the flow; then the process ends.")
    stuck_after: Seconds = Field(60, description="A partition with work that did not move for so long is unhealthy.")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")] = (
        Field("info", description="Least severe level that is logged.")
    )
    log_format: Annotated[Literal["json", "pretty"] | None, one_of("json", "pretty")] = Field(
        None, description="How a log line looks. Unset: `pretty` where standard error is a terminal, otherwise `json`."
    )


class Settings(Section):
    """All settings of a worker."""

    roles: Annotated[tuple[Role, ...], BeforeValidator(words_of(ROLES))] = Field(
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
    def _coherent(self, info: ValidationInfo) -> Settings:
        conflicts.report(conflicts.of_all(self), info)
        return self
