"""Answers that were refused, appeals against them, feedback on any answer."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the three tables."""
    op.create_table(
        "answers",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("model", sa.String(300), nullable=False),
        sa.Column("policy", sa.String(300), nullable=False),
        sa.Column("policy_hash", sa.String(64), nullable=False),
        sa.Column("level", sa.String(64), nullable=False),
        sa.Column("gate", sa.Double),
        sa.Column("kind", sa.String(100)),
        sa.Column("messages", sa.JSON),
        sa.Column("reply", sa.Text),
    )
    op.create_index("ix_answers_owner", "answers", ["owner"])
    op.create_index("ix_answers_kind", "answers", ["kind"])
    op.create_table(
        "appeals",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("answer", sa.String(100), sa.ForeignKey("answers.id"), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("argument", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decided", sa.Double),
        sa.Column("reviewer", sa.String(200)),
        sa.Column("note", sa.Text),
        sa.UniqueConstraint("answer", name="one_appeal_an_answer"),
    )
    op.create_index("ix_appeals_owner", "appeals", ["owner"])
    op.create_index("ix_appeals_queue", "appeals", ["state", "created", "id"])
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("answer", sa.String(100), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("rating", sa.String(16), nullable=False),
        sa.Column("comment", sa.Text),
    )
    op.create_index("ix_feedback_owner", "feedback", ["owner"])
    op.create_index("ix_feedback_created", "feedback", ["created"])
