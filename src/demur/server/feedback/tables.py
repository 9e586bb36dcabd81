"""The tables, as the newest migration leaves them (`migrations/versions`; a test compares the two)."""

from sqlalchemy import JSON, Column, Double, ForeignKey, Index, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

answers = Table(
    "answers",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("owner", String(200), nullable=False, index=True),
    Column("created", Double, nullable=False),
    Column("since", Double, nullable=False),  # the clock of its text's retention; an appeal starts it anew
    Column("model", String(300), nullable=False),
    Column("policy", String(300), nullable=False),
    Column("policy_hash", String(64), nullable=False),
    Column("level", String(64), nullable=False),
    Column("gate", Double),
    Column("kind", String(100), index=True),
    Column("messages", JSON(none_as_null=True)),
    Column("reply", Text),
)

appeals = Table(
    "appeals",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("answer", String(100), ForeignKey("answers.id"), nullable=False),
    Column("owner", String(200), nullable=False, index=True),
    Column("created", Double, nullable=False),
    Column("argument", Text),
    Column("state", String(16), nullable=False),
    Column("decided", Double),
    Column("reviewer", String(200)),
    Column("note", Text),
    UniqueConstraint("answer", name="one_appeal_an_answer"),
    Index("ix_appeals_queue", "state", "created", "id"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("answer", String(100), nullable=False),  # any answer's id: those that were not refused are not kept
    Column("owner", String(200), nullable=False, index=True),
    Column("created", Double, nullable=False, index=True),
    Column("rating", String(16), nullable=False),
    Column("comment", Text),
)
