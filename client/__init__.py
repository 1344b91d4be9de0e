"""Clients of a Duologue server (or any Moshi server): call it with a WAV file, without torch or a model.

Nothing here knows the server's inside: only `server.protocol`, the wire's messages, is shared.
"""
