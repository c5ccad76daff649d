"""What speaks with a Postgres: processes without privileges, one a session. Standard library only.

A branch's Postgres belongs to its tenant, and what it sends may be anything. So it reaches the agent's process only
as frames of JSON of bounded length (`frames.py`).
"""
