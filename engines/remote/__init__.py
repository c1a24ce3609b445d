"""The remote engine: OpenAI-compatible upstreams compute what is asked of a student."""
