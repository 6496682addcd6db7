"""The Ray cluster of a search: joined or started, looked at before a search, asked for room, given trials."""
