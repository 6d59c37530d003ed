"""The fields that KubeRay and Kubernetes know, as data: what tests/test_cluster_files.py checks the manifests against.

RayClusterSpec, RayJobSpec and their parts: github.com/ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go
and rayjob_types.go, read on 2026-11-21: what releases 1.5.1 (the first with `authOptions`) to 1.7 share. Pod parts: the
Kubernetes core/v1 API reference, 1.28. RayServiceSpec: rayservice_types.go there, a release before 1.5.

A field's type: str, int, number, bool, any; a type below by name; [type] for a list; {type} for a map of strings to it.
A "!" before a field's name says that it must be there.
"""

FIELDS: dict[str, dict[str, str]] = {
    "RayCluster": {"!apiVersion": "str", "!kind": "str", "!metadata": "ObjectMeta", "!spec": "RayClusterSpec"},
    "RayJob": {"!apiVersion": "str", "!kind": "str", "!metadata": "ObjectMeta", "!spec": "RayJobSpec"},
    "RayService": {"!apiVersion": "str", "!kind": "str", "!metadata": "ObjectMeta", "!spec": "RayServiceSpec"},
    "RayServiceSpec": {"!serveConfigV2": "str", "!rayClusterConfig": "RayClusterSpec", "serveService": "any"},
    "ObjectMeta": {"name": "str", "namespace": "str", "labels": "{str}", "annotations": "{str}"},
    "RayClusterSpec": {
        "suspend": "bool",
        "managedBy": "str",
        "authOptions": "AuthOptions",
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": "{str}",
        "enableInTreeAutoscaling": "bool",
        "gcsFaultToleranceOptions": "any",
        "!headGroupSpec": "HeadGroupSpec",
        "rayVersion": "str",
        "workerGroupSpecs": "[WorkerGroupSpec]",
    },
    "AuthOptions": {"mode": "disabled|token"},
    "AutoscalerOptions": {
        "resources": "Resources",
        "image": "str",
        "imagePullPolicy": "Always|IfNotPresent|Never",
        "securityContext": "SecurityContext",
        "idleTimeoutSeconds": "int",
        "upscalingMode": "Default|Aggressive|Conservative",
        "version": "v1|v2",
        "env": "[EnvVar]",
        "envFrom": "any",
        "volumeMounts": "[VolumeMount]",
    },
    "HeadGroupSpec": {
        "!template": "PodTemplateSpec",
        "headService": "any",
        "enableIngress": "bool",
        "resources": "{str}",
        "labels": "{str}",
        "!rayStartParams": "{str}",
        "serviceType": "ClusterIP|NodePort|LoadBalancer",
    },
    "WorkerGroupSpec": {
        "suspend": "bool",
        "!groupName": "str",
        "replicas": "int",
        "!minReplicas": "int",
        "!maxReplicas": "int",
        "idleTimeoutSeconds": "int",
        "resources": "{str}",
        "labels": "{str}",
        "!rayStartParams": "{str}",
        "!template": "PodTemplateSpec",
        "scaleStrategy": "any",
        "numOfHosts": "int",
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": "int",
        "backoffLimit": "int",
        "!rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplateSpec",
        "metadata": "{str}",
        "clusterSelector": "{str}",
        "submitterConfig": "any",
        "managedBy": "str",
        "deletionStrategy": "any",
        "!entrypoint": "str",
        "runtimeEnvYAML": "str",
        "jobId": "str",
        "submissionMode": "K8sJobMode|HTTPMode|InteractiveMode|SidecarMode",
        "entrypointResources": "str",
        "entrypointNumCpus": "number",
        "entrypointNumGpus": "number",
        "ttlSecondsAfterFinished": "int",
        "shutdownAfterJobFinishes": "bool",
        "suspend": "bool",
    },
    "PodTemplateSpec": {"metadata": "ObjectMeta", "!spec": "PodSpec"},
    "PodSpec": {
        "activeDeadlineSeconds": "int",
        "affinity": "any",
        "automountServiceAccountToken": "bool",
        "!containers": "[Container]",
        "dnsPolicy": "str",
        "enableServiceLinks": "bool",
        "hostNetwork": "bool",
        "imagePullSecrets": "any",
        "initContainers": "[Container]",
        "nodeSelector": "{str}",
        "priorityClassName": "str",
        "restartPolicy": "Always|OnFailure|Never",
        "runtimeClassName": "str",
        "schedulerName": "str",
        "securityContext": "PodSecurityContext",
        "serviceAccountName": "str",
        "terminationGracePeriodSeconds": "int",
        "tolerations": "[Toleration]",
        "topologySpreadConstraints": "any",
        "volumes": "[Volume]",
    },
    "PodSecurityContext": {
        "fsGroup": "int",
        "runAsGroup": "int",
        "runAsNonRoot": "bool",
        "runAsUser": "int",
        "seccompProfile": "any",
        "supplementalGroups": "[int]",
    },
    "Container": {
        "args": "[str]",
        "command": "[str]",
        "env": "[EnvVar]",
        "envFrom": "any",
        "!image": "str",
        "imagePullPolicy": "Always|IfNotPresent|Never",
        "lifecycle": "any",
        "livenessProbe": "any",
        "!name": "str",
        "ports": "[ContainerPort]",
        "readinessProbe": "any",
        "resources": "Resources",
        "securityContext": "SecurityContext",
        "startupProbe": "any",
        "volumeMounts": "[VolumeMount]",
        "workingDir": "str",
    },
    "ContainerPort": {"!containerPort": "int", "name": "str", "protocol": "TCP|UDP"},
    "EnvVar": {"!name": "str", "value": "str", "valueFrom": "any"},
    "Resources": {"limits": "{str}", "requests": "{str}"},
    "SecurityContext": {
        "allowPrivilegeEscalation": "bool",
        "capabilities": "Capabilities",
        "privileged": "bool",
        "readOnlyRootFilesystem": "bool",
        "runAsGroup": "int",
        "runAsNonRoot": "bool",
        "runAsUser": "int",
        "seccompProfile": "any",
    },
    "Capabilities": {"add": "[str]", "drop": "[str]"},
    "Toleration": {
        "effect": "NoSchedule|PreferNoSchedule|NoExecute",
        "key": "str",
        "operator": "Exists|Equal",
        "tolerationSeconds": "int",
        "value": "str",
    },
    "Volume": {"!name": "str", "emptyDir": "EmptyDir", "persistentVolumeClaim": "any", "secret": "any"},
    "EmptyDir": {"medium": "str", "sizeLimit": "str"},
    "VolumeMount": {"!name": "str", "!mountPath": "str", "readOnly": "bool", "subPath": "str"},
}
PLAIN: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "number": (int, float)}


def faults(kind: str, value: object, path: str) -> list[str]:
    """What is wrong with a value of this type: unknown and absent fields, wrong types, words that are not allowed."""
    if kind == "any":
        return []
    if kind.startswith("["):
        if not isinstance(value, list):
            return [f"{path}: expected a list, but got {value!r}"]
        return [fault for at, item in enumerate(value) for fault in faults(kind[1:-1], item, f"{path}[{at}]")]
    if kind.startswith("{"):
        if not isinstance(value, dict):
            return [f"{path}: expected a map, but got {value!r}"]
        return [fault for name, item in value.items() for fault in faults(kind[1:-1], item, f"{path}.{name}")]
    if kind in PLAIN:
        fits = isinstance(value, PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{path}: expected {kind}, but got {value!r}"]
    if kind not in FIELDS:
        return [] if value in kind.split("|") else [f"{path}: expected {kind}, but got {value!r}"]
    if not isinstance(value, dict):
        return [f"{path}: expected {kind}, but got {value!r}"]
    known = {name.lstrip("!"): type_name for name, type_name in FIELDS[kind].items()}
    found = [f"{path}.{name}: {kind} has no such field" for name in value if name not in known]
    found += [f"{path}.{name[1:]}: is missing" for name in FIELDS[kind] if name[0] == "!" and name[1:] not in value]
    return found + [
        fault for name, item in value.items() if name in known for fault in faults(known[name], item, f"{path}.{name}")
    ]
