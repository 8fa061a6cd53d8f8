"""Floor 2: what plugs into the core: threats, objectives, searches, statistics."""
