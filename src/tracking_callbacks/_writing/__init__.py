"""The training side of the journal: sessions, timestamps, file snapshots, and starting and awaiting delivery."""
