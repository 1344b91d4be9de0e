"""What a call's keys and values were kept in: shorter numbers may say other tokens, so a replay must know."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.add_column(
        "sessions",
        sa.Column(
            "cache_dtype",
            sa.String(length=8),
            nullable=False,
            server_default="",
            comment="What keys and values were kept in, `fp32` or shorter; empty for calls kept before this was noted.",
        ),
    )


def downgrade() -> None:
    """Change it back."""
    op.drop_column("sessions", "cache_dtype")
