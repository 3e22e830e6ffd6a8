"""Dedicated deployments: found a place, started, routed to, stopped and deleted.

https://docs.together.ai/docs/dedicated-endpoints. An endpoint is a name that answers; under it, one
deployment runs the model and is billed by the minute, idle or not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distillctl.backend import StudentRef, Unreachable
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.hosted import unreachable
from distillctl_together.client import (
    Failed,
    Service,
    entries,
    is_id,
    is_model,
    raise_for_account,
)
from distillctl_together.settings import TogetherSettings

STOPPING_S = 300.0  # how long a deployment may take to stop
_READY, _STOPPED = "DEPLOYMENT_STATE_READY", "DEPLOYMENT_STATE_STOPPED"
_DEAD = frozenset({"DEPLOYMENT_STATE_FAILED", "DEPLOYMENT_STATE_STOPPING", _STOPPED})
_NO_REPLICAS = {"min_replicas": 0, "max_replicas": 0}


@dataclass(frozen=True)
class Target:
    """What is to be deployed, as resource names, and its price; hardware in words, "" where unknown."""

    model: str
    config: str
    hardware: str
    usd_per_hour: float | None


def serving_usd(target: Target, settings: TogetherSettings) -> float:
    """US dollars that must be set aside for a deployment: it is stopped once it is not needed, by Together at
    the latest when it was idle for so long. 0 where its price is not known."""
    return (target.usd_per_hour or 0.0) * settings.inactive_timeout / 60


class Serving:
    """The deployments of one project. sleep: seconds between looks."""

    def __init__(self, service: Service, settings: TogetherSettings,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._service, self._settings, self._sleep = service, settings, sleep

    # --- what can be deployed, for how much ---

    def of_student(self, student: StudentRef) -> Target:
        """Where a tuned model can run. Raises StudentError, Unreachable, BackendError."""
        sdk, project, tuned = self._service.sdk, self._service.project, student.data.get("object")
        model = self._service.read(sdk.models.with_raw_response.retrieve, tuned, project_id=project) if is_id(
            tuned) else None
        base = model.get("baseModel") if model else None
        if model is None or not isinstance(base, str):
            raise StudentError(Problem("is not there (any more) for this key", where=self._settings.host,
                                       value=student.model,
                                       hint="train again, or use the key that it was made with"))
        if self._settings.config:
            configs = [{"resource": self._settings.config}]
        else:
            configs = [
                {**row, "resource": f"projects/{row.get('projectId')}/configs/{row['id']}"}
                for row in self._service.pages(sdk.models.configs.with_raw_response.list, project_id=project,
                                               reference_model=base)]
        if not configs:
            raise StudentError(Problem("Together offers no deployment config for this model",
                                       where=self._settings.host, value=base,
                                       hint="set backends.together.config"))
        hardware = self._hardware()
        return min((self._of_config(f"projects/{project}/models/{tuned}", config, hardware)
                    for config in configs), key=_dearness)

    def of_base(self, name: str) -> Target | None:
        """Where an untuned model can run; None where it cannot. Raises Unreachable, BackendError."""
        listed = self._service.sdk.models.with_raw_response.list_supported
        row = next((row for row in self._service.pages(listed, search=name) if row.get("name") == name), {})
        found = [self._of_profile(profile) for profile in row.get("deploymentProfiles") or ()
                 if isinstance(profile, dict) and profile.get("model")
                 and (profile.get("config") or self._settings.config)]
        return min(found, default=None, key=_dearness)

    def _of_config(self, model: str, config: Mapping[str, Any], hardware: list[dict[str, Any]]) -> Target:
        wanted = {selector.get("value") for selector in config.get("selectors") or ()
                  if isinstance(selector, dict)}
        chosen = next((row for row in hardware if row["id"] in wanted), None)
        words = f"{chosen.get('gpuCount')}x {chosen.get('gpuType')}" if chosen else ""
        return Target(model, str(config["resource"]), words, self._price(chosen))

    def _of_profile(self, profile: Mapping[str, Any]) -> Target:
        gpu, count = profile.get("gpuType"), profile.get("gpuCount")
        prices = [price for row in self._hardware()
                  if (row.get("gpuType"), row.get("gpuCount")) == (gpu, count)
                  and (price := self._price(row)) is not None]
        return Target(str(profile["model"]), str(self._settings.config or profile["config"]),
                      f"{count}x {gpu}", min(prices, default=self._settings.price_per_hour))

    def _hardware(self) -> list[dict[str, Any]]:
        found = self._service.read(self._service.sdk.endpoints.hardware.with_raw_response.list)
        return entries(found or {"data": []})

    def _price(self, hardware: Mapping[str, Any] | None) -> float | None:
        if self._settings.price_per_hour is not None:
            return self._settings.price_per_hour
        cents = hardware.get("priceCentsPerHour") if hardware else None
        return cents / 100 if isinstance(cents, int | float) and not isinstance(cents, bool) else None

    # --- start and stop ---

    def start(self, name: str, target: Target, created: Callable[[], None]) -> str:
        """Deploy under a fresh endpoint, wait until it answers; the name to ask. created: called once
        there may be something to pay. Raises StudentError, Unreachable, BackendError."""
        sdk, project = self._service.sdk, self._service.project
        endpoint = self._change(sdk.endpoints.with_raw_response.create, project_id=project, name=name)
        answering = endpoint.get("name")
        if not is_id(endpoint.get("id")) or not is_model(answering):
            raise Unreachable("the reply to the endpoint's creation cannot be read")
        created()
        place = {"project_id": project, "endpoint_id": endpoint["id"]}
        deployments = sdk.endpoints.deployments.with_raw_response
        made = self._change(
            deployments.create, **place, name=name, model=target.model, config=target.config,
            autoscaling={"min_replicas": 1, "max_replicas": 1},
            inactive_timeout=self._settings.inactive_timeout)
        if not is_id(made.get("id")):
            raise Unreachable("the reply to the deployment's creation cannot be read")
        for state, said in self._looks(made["id"], place, self._settings.start_timeout):
            if state == _READY:
                break
            if state in _DEAD:
                raise StudentError(Problem(f"the deployment did not start: {state} {said}".rstrip(),
                                           where=self._settings.host, value=name, hint="run again later"))
        else:
            raise StudentError(Problem(
                f"the deployment was not ready within {self._settings.start_timeout:g} s",
                where=self._settings.host, value=name, field="backends.together.start_timeout",
                hint="it was stopped; run again later, or allow more"))
        self._change(sdk.endpoints.with_raw_response.update, endpoint["id"], project_id=project,
                     traffic_split=[{"deployment_id": made["id"], "weight": 1.0}])
        return str(answering)

    def stop(self, name: str) -> bool:
        """Stop and delete what is deployed under `name`; whether there was anything. The bill ends once the
        replicas are gone; deleting is to tidy up. Raises Unreachable, BackendError."""
        sdk, project = self._service.sdk, self._service.project
        found = [row for row in self._service.pages(sdk.endpoints.with_raw_response.list, project_id=project)
                 if str(row.get("name")).rpartition("/")[2] == name and is_id(row["id"])]
        for endpoint in found:
            place = {"project_id": project, "endpoint_id": endpoint["id"]}
            deployments = sdk.endpoints.deployments.with_raw_response
            running = [row["id"] for row in self._service.pages(deployments.list, **place)
                       if is_id(row["id"])]
            for deployment in running:
                self._gone(deployments.update, deployment, **place, autoscaling=_NO_REPLICAS)
            self._gone(sdk.endpoints.with_raw_response.update, endpoint["id"], project_id=project,
                       update_mask="trafficSplit", traffic_split=[])  # else an empty list is no change
            for deployment in running:
                looks = self._looks(deployment, place, STOPPING_S)
                if not any(state in ("", _STOPPED) for state, _ in looks):
                    raise Unreachable(f"deployment {deployment} takes long to stop; it has no replicas left")
                self._gone(deployments.delete, deployment, **place)
            self._gone(sdk.endpoints.with_raw_response.delete, endpoint["id"], project_id=project)
        return bool(found)

    def _looks(self, deployment: str, place: Mapping[str, str], seconds: float) -> Iterator[tuple[str, str]]:
        """A deployment's state and what is said of it, again and again for so long; "": it is gone."""
        until, pause = time.monotonic() + seconds, 0.1
        while True:
            try:
                row = self._service.read(
                    self._service.sdk.endpoints.deployments.with_raw_response.retrieve, deployment, **place)
                status = (row or {}).get("status")
                status = status if isinstance(status, dict) else {}
                yield ("" if row is None else str(status.get("state"))), str(status.get("message") or "")
            except Unreachable:  # says nothing about the deployment
                yield "unreachable", ""
            if time.monotonic() + pause > until:
                return
            self._sleep(pause)
            pause = min(10.0, pause * 1.6)

    def _change(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A call that changes something, sent once."""
        try:
            return self._service.call(method, *args, **kwargs)
        except Failed as failed:
            raise_for_account(failed, self._settings)
            if failed.refused and failed.status != 429:
                raise BackendError(Problem(f"Together refuses the deployment: {failed}",
                                           where=self._settings.host)) from failed
            raise unreachable(failed) from failed

    def _gone(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """A call towards the end of something that may have ended by itself."""
        try:
            self._service.call(method, *args, **kwargs)
        except Failed as failed:
            if failed.status != 404:
                raise_for_account(failed, self._settings)
                raise unreachable(failed) from failed


def _dearness(target: Target) -> float:
    return math.inf if target.usd_per_hour is None else target.usd_per_hour
