"""The `fenhe` command: one file per subcommand."""
