"""Servers compared: started in turn on the same cores, under the same load. `servers.toml` has their commands."""
