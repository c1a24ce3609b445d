"""What each tenant asked for, as Prometheus families.

Definitions: a request is counted once, at its end, by the status it was answered with; tokens are those of its usage,
also where the answer came from the cache. Requests without a valid key have no tenant and are not counted. There are
no more tenants than keys.
"""

from prometheus_client import CollectorRegistry, Counter

from server.telemetry.request_record import Record


class TenantMetrics:
    """Owned by the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Requests of a tenant."
        self._requests = Counter("fenhe_tenant_requests", text, ("tenant", "status"), registry=registry)
        text = "Tokens of a tenant's prompts and answers."
        self._tokens = Counter("fenhe_tenant_tokens", text, ("tenant", "kind"), registry=registry)

    def observe(self, record: Record, status: int) -> None:
        if record.tenant is None:
            return
        self._requests.labels(record.tenant, str(status)).inc()
        for kind, count in (("prompt", record.num_prompt_tokens), ("completion", record.num_tokens)):
            if count:
                self._tokens.labels(record.tenant, kind).inc(count)
