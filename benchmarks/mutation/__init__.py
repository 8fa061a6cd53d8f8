"""How mutants.py makes, runs and reports mutants."""
