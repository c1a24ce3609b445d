"""What must hold between the objects of a rendered chart, and between them and the server: a schema checks neither.

Each rule yields a problem per violation. `find_problems` runs them all.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from tests.deploy.chart import (
    NAMESPACE,
    Object,
    Objects,
    containers,
    is_fenhe,
    name_of,
    of_kind,
    pods,
    workloads,
)
from tests.deploy.quantities import quantity
from tests.deploy.server_facts import END_S, PROBES, addresses, metrics, settings_problems, variables

Problems = Iterator[str]
_METRIC = re.compile(r"(?:fenhe_|vllm:)[a-z_]+")
FOREIGN_VARIABLES = {"HOME", "VALKEY_PASSWORD"}


def find_problems(objects: Objects) -> list[str]:
    return [problem for rule in RULES for problem in rule(objects)]


def _is_part(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def names_are_unique(objects: Objects) -> Problems:
    for (kind, name), count in Counter((one["kind"], one["metadata"]["name"]) for one in objects).items():
        if count > 1:
            yield f"{count} objects are {kind} {name}"
        if len(name) > 63:
            yield f"{kind} {name} has more than 63 characters"


def selectors_find_pods(objects: Objects) -> Problems:
    labels = [labels for _, _, labels in pods(objects)]
    for one in workloads(objects):
        if not _is_part(one["spec"]["selector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"]):
            yield f"{name_of(one)} does not select its own pods"
    for one in of_kind(objects, "Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec = one["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        selector = selector.get("matchLabels", selector)
        if not any(_is_part(selector, each) for each in labels):
            yield f"{name_of(one)} selects no pod"


def each_pod_has_one_service(objects: Objects) -> Problems:
    """One that balances: a headless Service is no second one."""
    balancing = [one for one in of_kind(objects, "Service") if one["spec"].get("clusterIP") != "None"]
    for one in workloads(objects):
        labels = one["spec"]["template"]["metadata"]["labels"]
        found = [service for service in balancing if _is_part(service["spec"]["selector"], labels)]
        if len(found) != 1:
            yield f"{name_of(one)} has {len(found)} Services"


def monitors_find_one_service(objects: Objects) -> Problems:
    for one in of_kind(objects, "ServiceMonitor"):
        selector = one["spec"]["selector"]["matchLabels"]
        found = [each for each in of_kind(objects, "Service") if _is_part(selector, each["metadata"]["labels"])]
        if len(found) != 1:
            yield f"{name_of(one)} finds {len(found)} Services"
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        for endpoint in one["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"{name_of(one)} scrapes the port {endpoint['port']}, which no Service has"


def ports_exist(objects: Objects) -> Problems:
    for where, spec, _ in pods(objects):
        for container in containers(spec):
            names = {port["name"] for port in container.get("ports", [])}
            for probe in _probes(container):
                asked: Object = probe.get("httpGet") or probe["tcpSocket"]
                port = asked["port"]
                if port not in names:
                    yield f"{where}: a probe asks the port {port}, which {container['name']} does not have"
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"]
        found = {name for _, spec, labels in pods(objects) if _is_part(selector, labels) for name in _port_names(spec)}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in found:
                yield f"{name_of(service)} sends to the port {port['targetPort']}, which no container has"


def _port_names(spec: Object) -> set[str]:
    return {port["name"] for container in spec["containers"] for port in container.get("ports", [])}


def _probes(container: Object) -> list[Object]:
    return [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]


def routes_lead_to_services(objects: Objects) -> Problems:
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in of_kind(objects, "Service")}
    for one in of_kind(objects, "Ingress"):
        for rule in one["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                to = path["backend"]["service"]
                if to["port"]["name"] not in {port["name"] for port in services.get(to["name"], [])}:
                    yield f"{name_of(one)} leads to {to['name']}:{to['port']['name']}, which is not there"
    for one in of_kind(objects, "HTTPRoute"):
        for backend in (each for rule in one["spec"]["rules"] for each in rule["backendRefs"]):
            if backend["port"] not in {port["port"] for port in services.get(backend["name"], [])}:
                yield f"{name_of(one)} leads to {backend['name']}:{backend['port']}, which is not there"


def references_exist(objects: Objects) -> Problems:
    """Secrets and named claims are the user's: their names come from values, and only have to be there."""
    known = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for where, spec, _ in pods(objects):
        account = spec.get("serviceAccountName", "default")
        if account != "default" and ("ServiceAccount", account) not in known:
            yield f"{where} runs as the ServiceAccount {account}, which is not there"
        for volume in spec.get("volumes", []):
            config_map = volume.get("configMap", {}).get("name")
            if config_map and ("ConfigMap", config_map) not in known:
                yield f"{where} mounts the ConfigMap {config_map}, which is not there"
            if "secret" in volume and not volume["secret"]["secretName"]:
                yield f"{where} mounts a Secret without a name"
        for variable in (one for container in containers(spec) for one in container.get("env", [])):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret is not None and not (secret["name"] and secret["key"]):
                yield f"{where}: {variable['name']} comes from a Secret without a name"
    for one in of_kind(objects, "StatefulSet"):
        if ("Service", one["spec"]["serviceName"]) not in known:
            yield f"{name_of(one)} names the Service {one['spec']['serviceName']}, which is not there"


def volumes_fit(objects: Objects) -> Problems:
    templates = {
        name_of(one): {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        for one in workloads(objects)
    }
    for where, spec, _ in pods(objects):
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | templates.get(where, set())
        used = {mount["name"] for container in containers(spec) for mount in container.get("volumeMounts", [])}
        if volumes != used:
            yield f"{where}: volumes {sorted(volumes)}, but mounted are {sorted(used)}"
        for container in containers(spec):
            paths = [PurePosixPath(mount["mountPath"]) for mount in container.get("volumeMounts", [])]
            for path in paths:
                if any(path in other.parents for other in paths):
                    yield f"{where}: something is mounted inside {path}, whose volume has no folder for it"
            is_closed = container["securityContext"].get("readOnlyRootFilesystem") and is_fenhe(container)
            if is_closed and PurePosixPath("/tmp") not in paths:
                yield f"{where}: {container['name']} has nowhere to write temporary files"


def pods_are_restricted(objects: Objects) -> Problems:
    """Pod Security "restricted", and no token of the API server."""
    for where, spec, _ in pods(objects):
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{where} gets a token of the API server"
        if spec["securityContext"].get("runAsNonRoot") is not True:
            yield f"{where} may run as root"
        if spec["securityContext"].get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where} has no seccomp profile"
        for container in containers(spec):
            context = container.get("securityContext", {})
            if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: {container['name']} keeps capabilities or may gain some"
            has_gpu = any("gpu" in name for name in container["resources"].get("limits", {}))
            if not (context.get("readOnlyRootFilesystem") or has_gpu):
                yield f"{where}: the root of {container['name']} can be written"


def images_are_pinned(objects: Objects) -> Problems:
    for where, spec, _ in pods(objects):
        for container in containers(spec):
            tag = container["image"].rpartition("/")[2].partition("@")[0].partition(":")[2]
            if "@sha256:" not in container["image"] and tag in ("", "latest"):
                yield f"{where}: {container['image']} is not pinned"


def resources_are_sound(objects: Objects) -> Problems:
    for where, spec, _ in pods(objects):
        for container in containers(spec):
            requests, limits = (container["resources"].get(part, {}) for part in ("requests", "limits"))
            for name in ("cpu", "memory"):
                if name not in requests:
                    yield f"{where}: {container['name']} requests no {name}"
            if "memory" not in limits:
                yield f"{where}: the memory of {container['name']} has no limit"
            for name in requests.keys() & limits.keys():
                if quantity(requests[name]) > quantity(limits[name]):
                    yield f"{where}: {container['name']} requests more {name} than its limit"


def variables_are_read(objects: Objects) -> Problems:
    for where, spec, _ in pods(objects):
        for container in containers(spec):
            names = [variable["name"] for variable in container.get("env", [])]
            for name, count in Counter(names).items():
                if count > 1:
                    yield f"{where}: {name} is set {count} times"
                if name.startswith("FENHE_") and name not in variables():
                    yield f"{where}: fenhe reads no variable {name}"
                is_ours = name.startswith(("FENHE_", "STUDENT_KEY_")) or name in FOREIGN_VARIABLES
                if is_fenhe(container) and not is_ours:
                    yield f"{where}: fenhe does not know {name}"


def probes_are_served(objects: Objects) -> Problems:
    for where, spec, _ in pods(objects):
        for container in filter(is_fenhe, containers(spec)):
            for kind, path in PROBES.items():
                found = container.get(kind, {}).get("httpGet", {}).get("path")
                if found != path or found not in addresses():
                    yield f"{where}: its {kind} asks {found}, not {path}"


def settings_are_read(objects: Objects) -> Problems:
    for one in of_kind(objects, "ConfigMap"):
        text = one["data"].get("fenhe.toml")
        if text is not None:
            _, problems = settings_problems(one["data"]["fenhe.toml"])
            yield from (f"{name_of(one)}: {problem}" for problem in problems)


def grace_is_long_enough(objects: Objects) -> Problems:
    files = {one["metadata"]["name"]: one["data"].get("fenhe.toml") for one in of_kind(objects, "ConfigMap")}
    for one in workloads(objects):
        spec = one["spec"]["template"]["spec"]
        names = [volume["configMap"]["name"] for volume in spec.get("volumes", []) if "configMap" in volume]
        text = next((files[name] for name in names if files.get(name)), None)
        if text is None:
            continue
        grace_s, _ = settings_problems(text)
        pre_stop_s = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pre_stop_s < 1:
            yield f"{name_of(one)} stops while requests are still sent to it: no preStop"
        if spec["terminationGracePeriodSeconds"] < pre_stop_s + grace_s + END_S:
            yield f"{name_of(one)} is killed after {spec['terminationGracePeriodSeconds']} s, while answers run"


def scalers_fit(objects: Objects) -> Problems:
    targets = {(one["kind"], one["metadata"]["name"]): one for one in workloads(objects)}
    scaled: Counter[tuple[str, str]] = Counter()
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = one["spec"]
        target = (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
        scaled[target] += 1
        if target not in targets:
            yield f"{name_of(one)} scales {' '.join(target)}, which is not there"
            continue
        if "replicas" in targets[target]["spec"]:
            yield f"{name_of(one)} and {' '.join(target)} both say how many replicas there are"
        least, most = (spec.get(f"{end}Replicas", spec.get(f"{end}ReplicaCount")) for end in ("min", "max"))
        if not 1 <= least <= most:
            yield f"{name_of(one)}: from {least} to {most} replicas"
        yield from _metric_problems(one, targets[target])
    for target, count in scaled.items():
        if count > 1:
            yield f"{' '.join(target)} is scaled by {count} scalers"


def _metric_problems(scaler: Object, target: Object) -> Problems:
    known = {name.replace(":", "_") for name in metrics()}
    requests = target["spec"]["template"]["spec"]["containers"][0]["resources"].get("requests", {})
    for metric in scaler["spec"].get("metrics", []):
        if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in known:
            yield f"{name_of(scaler)}: fenhe has no metric {metric['pods']['metric']['name']}"
        if metric["type"] == "Resource" and metric["resource"]["name"] not in requests:
            yield f"{name_of(scaler)}: a share of a request for {metric['resource']['name']}, which there is not"
    for trigger in scaler["spec"].get("triggers", []):
        query, place = trigger["metadata"]["query"], target["metadata"]["name"]
        for name in _METRIC.findall(query):
            if name not in metrics():
                yield f"{name_of(scaler)}: fenhe has no metric {name}"
        if f'namespace="{NAMESPACE}",pod=~"{place}-.*"' not in query:
            yield f"{name_of(scaler)}: the query asks about other pods than those of {place}: {query}"


def policies_cover_workloads(objects: Objects) -> Problems:
    """All of them, or none: then there are no policies at all, as the values say."""
    policies = [one["spec"]["podSelector"].get("matchLabels", {}) for one in of_kind(objects, "NetworkPolicy")]
    for one in workloads(objects):
        labels = one["spec"]["template"]["metadata"]["labels"]
        if policies and not any(_is_part(selector, labels) for selector in policies):
            yield f"{name_of(one)} has no NetworkPolicy"


def disruption_is_possible(objects: Objects) -> Problems:
    for one in of_kind(objects, "PodDisruptionBudget"):
        if one["spec"].get("maxUnavailable") in (0, "0%") or "minAvailable" in one["spec"]:
            yield f"{name_of(one)} may keep a node from being drained for ever"


RULES: Iterable[Callable[[Objects], Problems]] = (
    names_are_unique,
    selectors_find_pods,
    each_pod_has_one_service,
    monitors_find_one_service,
    ports_exist,
    routes_lead_to_services,
    references_exist,
    volumes_fit,
    pods_are_restricted,
    images_are_pinned,
    resources_are_sound,
    variables_are_read,
    probes_are_served,
    settings_are_read,
    grace_is_long_enough,
    scalers_fit,
    policies_cover_workloads,
    disruption_is_possible,
)
