"""Floor 1: oracle, threat, problem, search and the one loop that joins them."""
