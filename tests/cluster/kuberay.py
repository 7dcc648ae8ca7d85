"""What a RayCluster of KubeRay may say, as far as our recipe says it: no package ships the operator's schema.

Names and types are those of the API reference of KubeRay 1.6 (ray.io/v1). Pod templates are Kubernetes' own and are
checked against its schema.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import StrictModel

Params = dict[str, str]
"""Options of `ray start`, without dashes. Kubernetes refuses numbers here."""


class Template(StrictModel):
    """A PodTemplateSpec."""

    metadata: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any]


class HeadGroup(StrictModel):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    rayStartParams: Params
    template: Template


class WorkerGroup(StrictModel):
    groupName: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    replicas: int = Field(0, ge=0)
    minReplicas: int = Field(0, ge=0)
    maxReplicas: int = Field(2**31 - 1, ge=0)
    numOfHosts: int = Field(1, ge=1)
    rayStartParams: Params
    template: Template

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class Autoscaler(StrictModel):
    resources: dict[str, Any] = Field(default_factory=dict)
    securityContext: dict[str, Any] = Field(default_factory=dict)
    env: list[dict[str, Any]] = Field(default_factory=list)
    idleTimeoutSeconds: int = Field(60, ge=0)
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"


class Authentication(StrictModel):
    mode: Literal["disabled", "token"] = "disabled"


class Spec(StrictModel):
    rayVersion: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    authOptions: Authentication = Authentication()
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler = Autoscaler()
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = Field(default_factory=list)


class Metadata(StrictModel):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=50)


class RayCluster(StrictModel):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Spec
