"""Values and pure rules: messages, tools, runs, events, errors. Imports nothing outward."""
