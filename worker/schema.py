"""The tables. The job table is the truth: the broker only says that there is something to do."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    # The order of arrival. SQLite counts upwards by itself only in a plain INTEGER.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", String(32), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    # Number of attempts begun; together with `state` the fence of every change.
    Column("attempt", Integer, nullable=False, server_default="0"),
    # Attempts that ended because their worker vanished; these count towards the limit.
    Column("num_lost", Integer, nullable=False, server_default="0"),
    Column("idempotency_key", String(200)),
    Column("request_hash", String(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("flops", BigInteger, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("worker", String(255)),
    # Times are seconds since 1970 by the database's clock, so that hosts need not agree on theirs.
    Column("lease_until", Float(53)),
    Column("hand_back_at", Float(53)),
    Column("published_at", Float(53)),
    Column("created_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("finished_at", Float(53)),
    Column("result", JSON(none_as_null=True)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    UniqueConstraint("id", name="uq_jobs_id"),
    UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_key"),
    Index("ix_jobs_owner", "owner", "number"),
    Index("ix_jobs_state_queue", "state", "queue", "number"),
    Index("ix_jobs_queue_published", "queue", "published_at"),
    Index("ix_jobs_owner_state", "owner", "state"),
)

media = Table(
    "media",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    # False while an attempt has announced the file but not committed its job.
    Column("kept", Boolean, nullable=False, server_default=false()),
    Index("ix_media_job", "job_id", "attempt"),
    Index("ix_media_sha256", "sha256"),
    Index("ix_media_kept", "kept"),
)

locks = Table(
    "locks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(255)),
    Column("until", Float(53), nullable=False, server_default="0"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    # Whose jobs and pictures it opens; several tokens may share an owner.
    Column("owner", String(128), nullable=False),
    # The token itself is shown once, when it is made, and kept nowhere.
    Column("secret_hash", String(64), nullable=False),
    # None is no limit.
    Column("max_active", Integer),
    Column("jobs_per_day", Integer),
    Column("requests_per_minute", Integer),
    # How many jobs came with it on the day (days since 1970, UTC) of the last one.
    Column("day", Integer, nullable=False, server_default="0"),
    Column("jobs_on_day", Integer, nullable=False, server_default="0"),
    Column("created_at", Float(53), nullable=False),
    Column("last_used_at", Float(53)),
    Column("revoked_at", Float(53)),
    UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
)
