"""Together's dedicated deployments, its catalogue, and the chat that they answer.

Wire format: the `/v2` types of its SDK, version 3.1.1 (camelCase on the wire). A running replica is billed
by the minute, also while it is idle.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from math import log
from typing import TYPE_CHECKING, Any

from distillctl.sandbox.openai_data import next_tokens, tokens_of
from distillctl.sandbox.together_checks import (
    BASES,
    CATALOGUE_PROJECT,
    HARDWARE,
    Base,
    bad,
    check_chat,
    check_deployment,
    check_idle,
    check_name,
    iso,
    only,
    replicas,
)
from distillctl.sandbox.wire import Call, Refused, route
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.sandbox.jobs import Job, Jobs
    from distillctl.sandbox.server import Sandbox
    from distillctl.sandbox.store import Store

_STARTING = (("DEPLOYMENT_STATE_PROVISIONING", 60.0),)
_STOPPING = (("DEPLOYMENT_STATE_STOPPING", 10.0),)
_INSTANCE = next(iter(HARDWARE))
_CREATED = "2026-06-01T00:00:00Z"


class TogetherServing:
    """The routes of endpoints, deployments, models and chat; a half of `TogetherPart`."""

    store: Store
    jobs: Jobs
    sandbox: Sandbox

    # --- who asks, and what there is ---

    @route("GET", "/v3/whoami", "whoami")
    def whoami(self, call: Call) -> JSON:
        return {"type": "project_api_key", "api_key": {"id": f"key_{call.account}"},
                "organization": {"id": "org_sandbox", "name": "Sandbox"},
                "project": {"id": self._project(call.account), "name": "Sandbox",
                            "slug": self._slug(call.account)}}

    @route("GET", "/v2/supported-models", "models.supported")
    def supported(self, call: Call) -> JSON:
        search = call.query.get("search", "").casefold()
        return _page([_supported(base) for base in BASES.values() if search in base.name.casefold()], call)

    @route("GET", "/v2/public/inference-instance-types", "hardware")
    def hardware(self, call: Call) -> JSON:
        return {"object": "list", "next_cursor": None, "data": [
            {"id": name, "name": name, "description": f"{count} NVIDIA {gpu}", "gpuType": gpu,
             "gpuCount": count, "gpuMemoryGib": memory, "priceCentsPerHour": cents,
             "regions": [{"name": "us-central"}]} for name, (gpu, count, memory, cents) in HARDWARE.items()]}

    @route("GET", "/v2/projects/{project}/models/{id}", "models.get")
    def get_model(self, call: Call) -> JSON:
        self._check_project(call)
        model = self.store.get("model", call.path["id"], call.account)
        if model is None:
            raise bad(f"model {call.path['id']} not found", None, 404)
        return model["public"]

    @route("GET", "/v2/projects/{project}/configs", "configs.list")
    def list_configs(self, call: Call) -> JSON:
        self._check_project(call)
        wanted = call.query.get("referenceModel")
        if not wanted:
            raise bad("referenceModel is required", "referenceModel")
        return _page([
            {"id": base.config, "projectId": CATALOGUE_PROJECT, "referenceModel": base.resource,
             "referenceModelId": base.id, "certifications": [], "draftModel": "",
             "selectors": [{"key": "instance_type", "value": _INSTANCE}]}
            for base in BASES.values() if base.resource == wanted], call)

    # --- endpoints ---

    @route("POST", "/v2/projects/{project}/endpoints", "endpoints.create")
    def create_endpoint(self, call: Call) -> JSON:
        self._check_project(call)
        asked = call.json()
        only(asked, {"name", "visibility"})
        name = check_name(asked, self._slug(call.account))
        if any(other["name"] == name for other in self.store.list("endpoint", call.account)):
            raise bad(f"endpoint {name} already exists in this project", "name", 409)
        endpoint = {"id": f"ep_{secrets.token_hex(8)}", "account": call.account, "name": name, "traffic": [],
                    "created": time.time(), "etag": secrets.token_hex(4)}
        self.store.put("endpoint", endpoint["id"], endpoint, call.account)
        return self._endpoint_public(endpoint)

    @route("GET", "/v2/projects/{project}/endpoints", "endpoints.list")
    def list_endpoints(self, call: Call) -> JSON:
        self._check_project(call)
        return _page([self._endpoint_public(row) for row in self.store.list("endpoint", call.account)], call)

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}", "endpoints.get")
    def get_endpoint(self, call: Call) -> JSON:
        return self._endpoint_public(self._endpoint(call))

    @route("PATCH", "/v2/projects/{project}/endpoints/{endpoint}", "endpoints.update")
    def update_endpoint(self, call: Call) -> JSON:
        endpoint, asked = self._endpoint(call), call.json()
        only(asked, {"etag", "name", "trafficSplit", "visibility"})
        # an empty list is told from none by the mask alone
        if asked.get("trafficSplit") or "trafficSplit" in call.query.get("updateMask", ""):
            known = {row["id"] for row in self._deployments(endpoint)}
            for entry in asked.get("trafficSplit") or ():
                if entry.get("deploymentId") not in known:
                    raise bad(f"deployment {entry.get('deploymentId')} is not under this endpoint",
                              "trafficSplit")
            endpoint["traffic"] = asked.get("trafficSplit") or []
        self.store.put("endpoint", endpoint["id"], endpoint)
        return self._endpoint_public(endpoint)

    @route("DELETE", "/v2/projects/{project}/endpoints/{endpoint}", "endpoints.delete")
    def delete_endpoint(self, call: Call) -> JSON:
        endpoint = self._endpoint(call)
        if self._deployments(endpoint):
            raise bad("the endpoint still has deployments; delete them first", None, 409)
        self.store.delete("endpoint", endpoint["id"])
        return {}

    # --- deployments ---

    @route("POST", "/v2/projects/{project}/endpoints/{endpoint}/deployments", "deployments.create")
    def create_deployment(self, call: Call) -> JSON:
        endpoint, asked = self._endpoint(call), call.json()
        least, most = check_deployment(asked)
        name = check_name(asked, f"{self._slug(call.account)}/{endpoint['name']}")
        base, job_id = self._served(call, asked.get("model"))
        if asked.get("config") != base.config_resource:
            raise bad(f"config {asked.get('config')} is not compatible with the model", "config")
        if any(other["name"] == name for other in self._deployments(endpoint)):
            raise bad(f"deployment {name} already exists", "name", 409)
        deployment = {
            "id": f"dep_{secrets.token_hex(8)}", "account": call.account, "endpoint": endpoint["id"],
            "name": name, "model": f"{asked['model']}/revisions/rv_1", "base": base.name, "job": job_id,
            "config": asked["config"], "replicas": [least, most], "idle": asked.get("inactiveTimeout", 0),
            "created": time.time(), "started": time.time() if most else None, "stopped": None, "looks": 0,
            "used": time.time(), "starts": 1}
        if call.query.get("validateOnly") != "true":
            self.store.put("deployment", deployment["id"], deployment, call.account)
        return self._deployment_public(deployment, endpoint)

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}/deployments", "deployments.list")
    def list_deployments(self, call: Call) -> JSON:
        endpoint = self._endpoint(call)
        return _page([self._deployment_public(row, endpoint) for row in self._deployments(endpoint)], call)

    @route("GET", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "deployments.get")
    def get_deployment(self, call: Call) -> JSON:
        endpoint, deployment = self._deployment(call)
        shown = self._deployment_public(deployment, endpoint)
        if call.fault and call.fault.what == "word":
            shown["status"]["state"] = call.fault.value
        deployment["looks"] += 1
        self.store.put("deployment", deployment["id"], deployment)
        return shown

    @route("PATCH", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "deployments.update")
    def update_deployment(self, call: Call) -> JSON:
        endpoint, deployment = self._deployment(call)
        asked = call.json()
        only(asked, {"autoscaling", "etag", "inactiveTimeout", "maxConcurrentRequestsPerReplica", "name"})
        check_idle(asked)
        if "autoscaling" in asked:
            deployment["replicas"] = list(replicas(asked["autoscaling"], tuple(deployment["replicas"])))
            if deployment["replicas"] == [0, 0]:
                self._stop(deployment)
            elif deployment["started"] is None:
                deployment |= {"started": time.time(), "stopped": None, "looks": 0, "used": time.time(),
                               "starts": deployment["starts"] + 1}
        self.store.put("deployment", deployment["id"], deployment)
        return self._deployment_public(deployment, endpoint)

    @route("DELETE", "/v2/projects/{project}/endpoints/{endpoint}/deployments/{id}", "deployments.delete")
    def delete_deployment(self, call: Call) -> JSON:
        endpoint, deployment = self._deployment(call)
        if any(entry["deploymentId"] == deployment["id"] for entry in endpoint["traffic"]):
            raise bad("the deployment receives live traffic; change the traffic split first", None, 409)
        if self._state(deployment) != "DEPLOYMENT_STATE_STOPPED":
            raise bad("the deployment is not stopped", None, 409)
        self.store.delete("deployment", deployment["id"])
        return {}

    # --- answers ---

    @route("POST", "/v1/chat/completions", "chat", slow=True)
    def chat(self, call: Call) -> JSON:
        asked = call.json()
        check_chat(asked)
        with self.store.transaction():
            job = self._answering(call, asked["model"])
            student = self.jobs.student(job) if job else None
        schema = asked["response_format"]["json_schema"].get("schema") if (
            (asked.get("response_format") or {}).get("type") == "json_schema") else None
        answer = self.sandbox.answer(student, asked["messages"], schema)
        tokens, most = tokens_of(answer.output or ""), asked.get("max_tokens")
        cut = most is not None and len(tokens) > most
        tokens = tokens[:most] if cut else tokens
        prompt = sum(len(tokens_of(message["content"])) + 4 for message in asked["messages"])
        return {"id": f"sandbox-{secrets.token_hex(8)}", "object": "chat.completion", "prompt": [],
                "created": int(time.time()), "model": asked["model"],
                "choices": [{"index": 0, "finish_reason": "length" if cut else "stop", "seed": 1,
                             "message": {"role": "assistant", "content": "".join(tokens), "tool_calls": []},
                             "logprobs": _logprobs(asked, tokens, answer.label_logprobs)}],
                "usage": {"prompt_tokens": prompt, "completion_tokens": len(tokens),
                          "total_tokens": prompt + len(tokens)}}

    def add_model(self, job: Job, model_id: str, kind: str) -> None:
        """Register what a job has trained."""
        base = BASES[str(job.request["model"])]
        suffix = "-adapter" if kind == "adapter" else ""
        self.store.put("model", model_id, {"job": job.id, "base": base.name, "public": {
            "id": model_id, "name": f"{job.extra['output']}{suffix}", "organizationId": "org_sandbox",
            "projectId": self._project(job.account), "visibility": "VISIBILITY_PRIVATE",
            "baseModel": base.resource, "baseModelId": base.id,
            "weights": {"type": "WEIGHTS_TYPE_ADAPTER" if suffix else "WEIGHTS_TYPE_DEFAULT"}}}, job.account)

    def paid_servers(self) -> int:
        return sum(1 for row in self.store.list("deployment") if self._state(row) not in (
            "DEPLOYMENT_STATE_STOPPED", "DEPLOYMENT_STATE_STOPPING"))

    # --- helpers ---

    def _project(self, account: str) -> str:
        return f"proj_{account}"

    def _slug(self, account: str) -> str:
        return f"sandbox-{account[:6]}"

    def _check_project(self, call: Call) -> None:
        if call.path["project"] != self._project(call.account):
            raise Refused(403, f"project {call.path['project']} is not accessible with this API key",
                          type="invalid_request_error", code="permission_denied")

    def _endpoint(self, call: Call) -> dict[str, Any]:
        self._check_project(call)
        found = self.store.get("endpoint", call.path["endpoint"], call.account)
        if found is None:
            raise bad(f"endpoint {call.path['endpoint']} not found", None, 404)
        return found

    def _deployment(self, call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
        endpoint = self._endpoint(call)
        found = self.store.get("deployment", call.path["id"], call.account)
        if found is None or found["endpoint"] != endpoint["id"]:
            raise bad(f"deployment {call.path['id']} not found", None, 404)
        return endpoint, found

    def _deployments(self, endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row for row in self.store.list("deployment") if row["endpoint"] == endpoint["id"]]

    def _served(self, call: Call, resource: JSON) -> tuple[Base, str | None]:
        """The base of a model resource, and the job that tuned it (None: the base itself)."""
        for base in BASES.values():
            if resource == base.resource:
                return base, None
        own = f"projects/{self._project(call.account)}/models/"
        model = self.store.get("model", str(resource).removeprefix(own), call.account)
        if model is None or not str(resource).startswith(own):
            raise bad(f"model {resource} not found", "model", 404)
        return BASES[model["base"]], model["job"]

    def _state(self, row: dict[str, Any]) -> str:
        """A deployment's state now; one that nobody has asked for too long stops by itself."""
        if row["started"] is not None and row["idle"] and self.jobs.elapsed(row["used"]) > 60 * row["idle"]:
            self._stop(row)
            self.store.put("deployment", row["id"], row)
        if row["started"] is None:
            over = row["stopped"] is None or self.jobs.passed(_STOPPING, row["stopped"], row["looks"])
            return "DEPLOYMENT_STATE_STOPPED" if over else _STOPPING[0][0]
        passed = self.jobs.passed(_STARTING, row["started"], row["looks"])
        return "DEPLOYMENT_STATE_READY" if passed else _STARTING[0][0]

    def _stop(self, row: dict[str, Any]) -> None:
        """No replicas from now on; the bill for those that there were."""
        if row["started"] is None:
            return
        minutes = math.ceil(self.jobs.elapsed(row["started"]) / 60)
        self.store.charge(row["account"], "serving", f"{row['id']}#{row['starts']}", minutes, "minutes")
        row |= {"started": None, "stopped": time.time(), "looks": 0, "replicas": [0, 0]}

    def _answering(self, call: Call, model: str) -> Job | None:
        """The job whose student answers `<project>/<endpoint>[/<deployment>]`; None: the base model."""
        slug, _, rest = model.partition("/")
        name, _, pinned = rest.partition("/")
        for endpoint in self.store.list("endpoint", call.account):
            if slug != self._slug(call.account) or endpoint["name"] != name:
                continue
            live = {entry["deploymentId"] for entry in endpoint["traffic"] if entry.get("weight", 0) > 0}
            for row in self._deployments(endpoint):
                chosen = row["name"] == pinned if pinned else row["id"] in live
                if chosen and self._state(row) == "DEPLOYMENT_STATE_READY":
                    self.store.put("deployment", row["id"], {**row, "used": time.time()})
                    return self.jobs.get(row["job"], None) if row["job"] else None
            raise Refused(503, f"No ready deployment receives traffic for {model}.", code="model_unavailable")
        raise Refused(404, f"Unable to access model {model}. Please visit api.together.ai/models to view the "
                           "list of supported models.", type="invalid_request_error",
                      code="model_not_available")

    def _endpoint_public(self, row: Mapping[str, Any]) -> dict[str, JSON]:
        created = iso(row["created"])
        summaries = [{name: shown[name] for name in ("id", "name", "model", "modelId", "autoscaling",
                                                     "createdAt", "trafficMode")}
                     | {"state": shown["status"]["state"], "estimatedEffectiveTrafficShare": 0.0}
                     for shown in (self._deployment_public(deployment, row)
                                   for deployment in self._deployments(row))]
        return {"id": row["id"], "name": f"{self._slug(row['account'])}/{row['name']}", "etag": row["etag"],
                "projectId": self._project(row["account"]), "endpointType": "ENDPOINT_TYPE_DEDICATED",
                "visibility": "VISIBILITY_PRIVATE", "trafficSplit": row["traffic"], "createdAt": created,
                "updatedAt": created, "deployments": summaries}

    def _deployment_public(self, row: dict[str, Any], endpoint: Mapping[str, Any]) -> dict[str, Any]:
        state, created = self._state(row), iso(row["created"])
        return {"id": row["id"], "endpointId": endpoint["id"], "projectId": self._project(row["account"]),
                "name": f"{self._slug(row['account'])}/{endpoint['name']}/{row['name']}", "etag": "1",
                "model": row["model"], "modelId": row["model"].split("/")[3], "modelRevisionId": "rv_1",
                "config": row["config"], "configId": row["config"].rpartition("/")[2],
                "autoscaling": dict(zip(("minReplicas", "maxReplicas"), row["replicas"], strict=True)),
                "hardware": _INSTANCE, "trafficMode": "TRAFFIC_MODE_LIVE", "inactiveTimeout": row["idle"],
                "createdAt": created, "updatedAt": created,
                "status": {"state": state, "message": ""}}


def _supported(base: Base) -> JSON:
    gpu, count, _, _ = HARDWARE[_INSTANCE]
    return {"id": base.id, "name": base.name, "displayName": base.name, "displayType": "chat",
            "publisher": base.name.partition("/")[0], "baseModel": base.resource, "baseModelId": base.id,
            "capabilities": ["CAPABILITY_CHAT"], "inputModalities": ["MODALITY_TEXT"],
            "outputModalities": ["MODALITY_TEXT"], "createdAt": _CREATED, "updatedAt": _CREATED,
            "products": ["PRODUCT_DEDICATED", "PRODUCT_FINE_TUNING"],
            "status": "SUPPORTED_MODEL_STATUS_SUPPORTED", "contextLength": str(base.max_seq_length),
            "deploymentProfiles": [{
                "certifiedConfigRevisionId": base.config, "certifiedModelRevisionId": "rv_1",
                "config": base.config_resource, "gpuCount": count, "gpuType": gpu, "model": base.resource,
                "modelName": base.name, "parallelism": "TP1", "performanceBenchmarks": {},
                "profileId": base.config, "quantization": "", "adapterMode": "ADAPTER_MODE_DISABLED"}]}


def _page(rows: Sequence[JSON], call: Call) -> JSON:
    """One page, from the place that the cursor names."""
    start, limit = int(call.query.get("after") or 0), call.number("limit", 50, 500)
    more = start + limit < len(rows)
    return {"object": "list", "data": list(rows[start:start + limit]),
            "next_cursor": str(start + limit) if more else None}


def _logprobs(asked: Mapping[str, JSON], tokens: Sequence[str],
              labels: Mapping[str, float] | None) -> JSON:
    """Log-probabilities beside the answer's tokens, where the student gives any (for labels only)."""
    if not asked.get("logprobs") or not labels or not tokens:
        return None
    chosen, alternatives, so_far = [], [], ""
    for token in tokens:
        shares = {text: log(share) for text, share in next_tokens(labels, so_far).items() if share > 0}
        chosen.append(shares.get(token, -9999.0))
        best = sorted(shares.items(), key=lambda item: -item[1])[:int(asked["logprobs"])]
        alternatives.append(dict(best))
        so_far += token
    return {"tokens": list(tokens), "token_logprobs": chosen, "token_ids": [0] * len(tokens),
            "top_logprobs": alternatives}

