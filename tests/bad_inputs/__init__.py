"""Bad inputs of every command: each is refused in one sentence, at once, and nothing is written."""
