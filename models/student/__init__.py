"""A student on disk: its folder, manifest, cut into modules, tokenizer and chat template."""
