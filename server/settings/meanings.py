"""What every setting means, in a line: what `fenhe serve --help` says. The only place where that is written."""

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Meaning:
    """`unset` says in words what the default is where its value does not."""

    text: str
    unset: str | None = None


SECTIONS = {
    "": "the server",
    "limits": "bounds on what one client may ask for",
    "engine": "what one student's engine may hold, and how it schedules",
    "router": "which path a request takes; the table [router.min_retention] is for the file alone",
    "admin": "the admin endpoints",
    "admission": "who may start, who waits and who is refused, per student",
    "cache": "answers that are kept; the table [cache.semantic] is for the file alone",
    "keys": "API keys, and the limits of those that name none of their own",
    "cors": "pages of other origins",
    "tracing": "OpenTelemetry, needs fenhe[otel]",
}

MEANINGS = {
    "host": Meaning("address to listen on"),
    "port": Meaning("port to listen on; 0: any that is free"),
    "student": Meaning("folder of the only student; several are [[student]] tables of the file", "the default student"),
    "grace_s": Meaning("seconds that running requests may take after SIGTERM"),
    "keep_alive_s": Meaning("seconds that an idle connection stays open between requests"),
    "allow_no_keys": Meaning("whether a server without API keys may listen beyond this machine"),
    "log_level": Meaning("the least serious lines that are logged"),
    "log_format": Meaning("text, or one JSON object a line"),
    "access_log": Meaning("whether the web server logs requests too, in a line of its own"),
    "limits.max_body_bytes": Meaning("size of a request's body"),
    "limits.max_prompt_tokens": Meaning("tokens of a prompt", "the student's context"),
    "limits.max_completion_tokens": Meaning("tokens of an answer", "the student's context"),
    "limits.max_prompts": Meaning("prompts of one request"),
    "limits.max_requests": Meaning("open requests, all students together"),
    "limits.max_json_depth": Meaning("how deeply a body may be nested"),
    "limits.max_head_bytes": Meaning("size of the request line and the headers"),
    "limits.max_headers": Meaning("headers of one request"),
    "limits.max_url_bytes": Meaning("size of an address"),
    "limits.max_connections": Meaning("open connections"),
    "limits.head_timeout_s": Meaning("seconds for the whole head to come"),
    "limits.body_timeout_s": Meaning("seconds for the body to come"),
    "limits.write_timeout_s": Meaning("seconds a client may take to make room for more of its answer"),
    "limits.request_timeout_s": Meaning("seconds for a whole request"),
    "limits.max_schema_bytes": Meaning("size of the schemas of response_format and tools together"),
    "limits.grammar_timeout_s": Meaning("seconds for making a grammar of them"),
    "engine.max_running": Meaning("sequences that run at once"),
    "engine.max_waiting": Meaning("sequences that queue behind them; beyond: 429"),
    "engine.max_context_tokens": Meaning("tokens of prompt and answer together", "the student's own"),
    "engine.kv_bytes": Meaning("memory for the KV of running sequences"),
    "engine.prefix_cache_bytes": Meaning("memory for the KV of prompts that begin alike; 0: none is kept"),
    "engine.weights_bytes": Meaning("memory for weights that precision auto may load"),
    "engine.step_tokens": Meaning("prompt tokens of one step while nothing else runs"),
    "engine.busy_step_tokens": Meaning("the same beside running streams; less is smoother, more is faster"),
    "engine.precision": Meaning(
        "a precision the student has; auto: the fastest here; adaptive: that for each row count"
    ),
    "engine.num_threads": Meaning("threads that compute", "all cores"),
    "engine.native_folder": Meaning("where fenhe's own operators are compiled to", "in the cache, see FENHE_CACHE"),
    "router.balanced": Meaning("share of the full path's score that a path must keep"),
    "router.fast": Meaning("the same for requests of quality fast"),
    "router.fast_under_load": Meaning("the same for those while the student is busy"),
    "router.busy_at": Meaning("a student is busy when its sequences are this share of max_running"),
    "router.step_down": Meaning("whether requests take shallower paths while their student is busy"),
    "router.enabled": Meaning("whether requests are classified; otherwise they take the full path"),
    "router.classifier": Meaning("a classifier file", "the one that ships"),
    "admin.key_sha256": Meaning("SHA-256 of the admin key, in hexadecimal", "none, and no admin endpoints"),
    "admission.max_running_tokens": Meaning("tokens of prompt and longest answer that may run"),
    "admission.max_queued_tokens": Meaning("tokens that may queue behind them"),
    "admission.default_deadline_s": Meaning(
        "seconds that a request has when it does not say", "that of --request-timeout-s"
    ),
    "cache.enabled": Meaning("whether answers that can be repeated are kept"),
    "cache.max_bytes": Meaning("memory for them in this process"),
    "cache.max_entry_bytes": Meaning("size of one answer"),
    "cache.ttl_s": Meaning("seconds that an answer is kept"),
    "cache.max_joined": Meaning("requests that share one generation"),
    "cache.max_questions": Meaning("questions that the semantic cache compares"),
    "cache.url": Meaning("Redis or Valkey that replicas share, redis://HOST:6379/0; needs fenhe[redis]", "none"),
    "cache.namespace": Meaning("what its keys begin with"),
    "cache.timeout_s": Meaning("seconds for one call to it"),
    "cache.max_connections": Meaning("connections to it"),
    "cache.breaker_failures": Meaning("failed calls in a row after which it is left alone"),
    "cache.breaker_pause_s": Meaning("seconds that it is left alone then"),
    "keys.file": Meaning("file with [[key]] tables; `fenhe keys make NAME` prints one", "none"),
    "keys.sha256": Meaning("SHA-256 of keys, in hexadecimal, with commas", "none"),
    "keys.requests_per_minute": Meaning("requests of one key in a minute"),
    "keys.tokens_per_minute": Meaning("tokens of one key in a minute, prompts and answers"),
    "keys.max_concurrent": Meaning("open requests of one key"),
    "keys.metrics": Meaning("whether /metrics needs a key too"),
    "cors.origins": Meaning("origins whose pages may call, with commas: https://page.example, or * for all", "none"),
    "tracing.enabled": Meaning("whether spans and metrics are sent"),
    "tracing.endpoint": Meaning("base URL of the collector", "what OTEL_EXPORTER_OTLP_* say, else this machine"),
    "tracing.service_name": Meaning("what the server calls itself"),
    "tracing.sample_ratio": Meaning("share of requests without a traceparent that are traced, from 0 to 1"),
    "tracing.timeout_s": Meaning("seconds for one call to the collector"),
    "tracing.metric_interval_s": Meaning("seconds between two calls with metrics"),
}
