"""Kubernetes: a job is a Job of one pod, made, followed and removed through `kubectl`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any, ClassVar

from dt2it_pipeline.config.sections.launcher import KubernetesSettings
from dt2it_pipeline.engines.launch.clusters.job import ClusterJob, call, last_words

_FIRST_POLL, _LAST_POLL = 0.5, 5.0  # seconds; each wait is twice as long as the one before
_ASK_SECONDS = 15  # for one answer of the API where nothing is at stake
_UNANSWERED = 60  # polls in a row, five minutes: a cluster's API may be away for a while


class Kubernetes:
    """Runs jobs through `kubectl`; see `Cluster`."""

    program: ClassVar[str] = "kubectl"
    programs: ClassVar[tuple[str, ...]] = ("kubectl",)

    def run(self, job: ClusterJob) -> int:
        """Make the Job, follow its pod until it has ended, remove it; 0, or 1 where it failed."""
        made = self._call(job, "create", "-f", "-", text=json.dumps(job_manifest(job)))
        if made.returncode != 0:
            print(made.stderr, flush=True)
            return made.returncode
        unanswered, shown, wait = 0, "", _FIRST_POLL
        try:
            while True:
                # It ends with the pod, and before where the pod has no node yet or the connection is cut.
                subprocess.run([*self._kubectl(job), "logs", "--follow", f"job/{job.name}"], stderr=subprocess.DEVNULL)
                status = self._call(job, "get", f"job/{job.name}", "-o", "json")
                unanswered = unanswered + 1 if status.returncode else 0
                if unanswered > _UNANSWERED or "(NotFound)" in status.stderr:
                    print(status.stderr, flush=True)
                    return 1
                found = {} if status.returncode else json.loads(status.stdout).get("status", {})
                if found.get("succeeded") or found.get("failed"):
                    return 0 if found.get("succeeded") else 1
                # Pending, ImagePullBackOff, ...: why a pod does not start, each once.
                pods = self._call(job, "get", "pods", f"--selector=job-name={job.name}", "--no-headers").stdout.split()
                if pods[2:3] and pods[2] != shown:
                    shown = pods[2]
                    print(f"pod {pods[0]}: {shown}", flush=True)
                time.sleep(wait)
                wait = min(2 * wait, _LAST_POLL)
        finally:
            self.cancel(job)

    def cancel(self, job: ClusterJob) -> None:
        """Remove the Job and its pod."""
        self._call(job, "delete", f"job/{job.name}", "--ignore-not-found", "--wait=false", "--cascade=background")

    def refusal(self, job: ClusterJob) -> str:
        """Let the cluster's API check the Job without keeping it, and look for the volume claim and the secret.

        An account that may not look at these, as with the rights of `deploy/kubernetes/launcher.yaml`, gets no answer
        about them, which is no refusal.
        """
        assert isinstance(job.settings, KubernetesSettings)
        quick = f"--request-timeout={_ASK_SECONDS}s"
        asked = self._call(job, "create", "--dry-run=server", quick, "-f", "-", text=json.dumps(job_manifest(job)))
        if asked.returncode != 0:
            return last_words(asked)
        needed = [f"persistentvolumeclaim/{job.settings.volume_claim}"]
        needed += [f"secret/{job.settings.secret}"] if job.settings.secret else []
        for name in needed:
            found = self._call(job, "get", name, quick, "-o", "name")
            if "(NotFound)" in found.stderr:
                return last_words(found)
        return ""

    def _kubectl(self, job: ClusterJob) -> list[str]:
        assert isinstance(job.settings, KubernetesSettings)
        return [self.program, f"--namespace={job.settings.namespace}"]

    def _call(self, job: ClusterJob, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return call(*self._kubectl(job), *arguments, text=text)


def job_manifest(job: ClusterJob) -> dict[str, Any]:
    """The Job as Kubernetes takes it: one pod that is never started again, since its step does that.

    Examples:
        >>> settings = KubernetesSettings(
        ...     kind="kubernetes", image="dt2it:1", volume_claim="home", mount_path="/data", gpus=8, memory="64G"
        ... )
        >>> job = ClusterJob(name="dt2it-1", command=("python", "train.py"), environment={}, settings=settings)
        >>> job_manifest(job)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        {'memory': '64G', 'nvidia.com/gpu': '8'}
    """
    settings = job.settings
    assert isinstance(settings, KubernetesSettings)
    memory = {"memory": settings.memory} if settings.memory else {}
    gpus = {"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {}
    labels = {"app.kubernetes.io/name": "dt2it", "app.kubernetes.io/component": "job"}
    container = {
        "name": "job",
        "image": settings.image,
        "command": list(job.command),
        "workingDir": settings.mount_path,
        "env": [{"name": name, "value": value} for name, value in sorted(job.environment.items())],
        "envFrom": [{"secretRef": {"name": settings.secret}}] if settings.secret else [],
        "resources": {"requests": {"cpu": str(settings.cpus), **memory}, "limits": {**memory, **gpus}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        # Ranks and loader workers hand batches over in shared memory, of which a pod has 64 MB by default.
        "volumeMounts": [
            {"name": "home", "mountPath": settings.mount_path},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        # As this process: what a pod writes into the artifact home must be ours to read and to remove.
        "securityContext": {"runAsUser": os.getuid(), "runAsGroup": os.getgid()},
        "nodeSelector": settings.node_selector,
        "containers": [container],
        "volumes": [
            {"name": "home", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
