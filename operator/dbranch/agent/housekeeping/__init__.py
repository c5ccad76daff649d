"""What an agent does for its node, not for one object: it publishes what it holds, and removes what is to go."""
