"""The command line: one module per subcommand; `run` is the composition root."""
