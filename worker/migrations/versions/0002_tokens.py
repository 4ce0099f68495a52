"""Tokens for the HTTP gateway, and an index for counting an owner's active jobs

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of tokens; jobs stay as they are."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("max_active", sa.Integer),
        sa.Column("jobs_per_day", sa.Integer),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("day", sa.Integer, nullable=False, server_default="0"),
        sa.Column("jobs_on_day", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("last_used_at", sa.Float(53)),
        sa.Column("revoked_at", sa.Float(53)),
        sa.UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
    )
    op.create_index("ix_jobs_owner_state", "jobs", ["owner", "state"])


def downgrade() -> None:
    """Drop the tokens: nobody can use the gateway from outside any more."""
    op.drop_index("ix_jobs_owner_state", "jobs")
    op.drop_table("tokens")
