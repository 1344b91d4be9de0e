"""What a server says, made fit for a terminal: whatever moves a cursor, colours or renames a window is not text.

Servers of others are called, too, and a model can be made to say anything: every text that comes from the wire goes
through here before anybody can show it.
"""

__all__ = ["printable", "read_text"]


def printable(text: str) -> str:
    """Leave out control characters, escapes and marks that turn the direction of writing; white space is a space."""
    return "".join(each if each.isprintable() else " " if each.isspace() else "" for each in text)


def read_text(body: bytes | bytearray) -> str:
    """Decode UTF-8, with a replacement character for what is none, and make it printable."""
    return printable(body.decode(errors="replace"))
