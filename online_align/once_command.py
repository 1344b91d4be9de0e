"""`duologue-align once`: one round, then the end. It is `learn_command` with another purpose."""

from online_align.learn_command import once as run

__all__ = ["run"]
