"""Writers: one file an output format, each a function of a graph and a Plan that decides nothing."""
