"""What the agent can call: image search and text search over real services. `pipeline` is the tool, `actor` its Ray form."""
