"""Which weights a call was held with: a name may be given to others later."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the schema."""
    op.add_column(
        "sessions",
        sa.Column(
            "base_sha256",
            sa.String(length=64),
            nullable=False,
            server_default="",
            comment="SHA-256 of its language model's weights; empty for calls kept before this was noted.",
        ),
    )


def downgrade() -> None:
    """Change it back."""
    op.drop_column("sessions", "base_sha256")
