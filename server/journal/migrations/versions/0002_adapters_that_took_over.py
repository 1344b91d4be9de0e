"""Adapters that took over in the middle of a call."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_AT_THE_START = "Id of the adapter at the start; empty for none."
_AT_THE_FIRST_FRAME = "Id of the adapter at the first recorded frame; empty for the base model."


def upgrade() -> None:
    """Change the schema."""
    op.create_table(
        "adapter_changes",
        sa.Column("session_id", sa.String(length=64), nullable=False, comment="The call."),
        sa.Column(
            "step",
            sa.Integer(),
            nullable=False,
            comment="Step of the call, counted from 0, that was the first by this adapter.",
        ),
        sa.Column(
            "adapter_id", sa.String(length=64), nullable=False, comment="Id of the adapter; empty for the base model."
        ),
        sa.PrimaryKeyConstraint("session_id", "step"),
        comment="Adapters that took over in the middle of a call.",
    )
    _describe_adapter(_AT_THE_START, _AT_THE_FIRST_FRAME)


def downgrade() -> None:
    """Change it back."""
    _describe_adapter(_AT_THE_FIRST_FRAME, _AT_THE_START)
    op.drop_table("adapter_changes")


def _describe_adapter(before: str, after: str) -> None:
    """SQLite keeps no comments, and would copy the whole table for one."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("sessions", "adapter", comment=after, existing_comment=before)
