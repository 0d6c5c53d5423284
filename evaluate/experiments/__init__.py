"""The experiments of the IRN and II-RNN papers, each one command: which cells, which tables, which plots."""
