"""The command line of dynx: parses arguments, runs commands, prints results. Loads no torch until a command runs."""
