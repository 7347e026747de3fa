"""What the shell sees: parse, call, render. Loads no torch until a command runs."""
