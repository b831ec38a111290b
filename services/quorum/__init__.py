"""Replication decisions, pure: gtid sets, versions, quorum reads and writes, repair. Imports nothing of the mesh."""
