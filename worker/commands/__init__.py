"""The worker's commands, a module for each: `add` makes its parser, `run` runs it."""
