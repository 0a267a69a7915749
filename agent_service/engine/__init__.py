"""The agents, the loop and the use cases, and the ports they need."""
