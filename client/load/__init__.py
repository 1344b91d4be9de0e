"""`duologue load`: many synthetic callers with real sound, and what the server made of them.

`script` makes the sound ready beforehand, `caller` plays it over a `link` of its own on its own clock, `party` lets
all callers come and go, `journey` and `figures` say how long every frame took and whose fault it was, `report` and
`picture` show it, `command` is the command line.
"""
