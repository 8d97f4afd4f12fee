"""Mixed precision under a bound: a rung of the ladder for every operator, chosen by what it costs and what it harms."""
