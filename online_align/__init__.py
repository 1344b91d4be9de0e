"""Learning from conversations: a process of its own, which shares a journal and a folder with the server."""
