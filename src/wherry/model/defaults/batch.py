"""Defaults of the group batch."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults import pods
from wherry.model.defaults.filling import Object, each, fill, made, part
from wherry.model.kinds import Kind

_NO_BOUND = 2**31 - 1


def job(obj: Object) -> None:
    """Fill in a Job; its selector and the labels of its pods come from its uid, so from the API server."""
    spec = made(obj, "spec")
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = spec["parallelism"] = 1
    fill(spec, "parallelism", 1)
    fill(spec, "backoffLimit", _NO_BOUND if spec.get("backoffLimitPerIndex") is not None else 6)
    fill(spec, "completionMode", "NonIndexed")
    fill(spec, "suspend", False)
    policy = spec.get("podFailurePolicy")
    fill(spec, "podReplacementPolicy", "Failed" if policy is not None else "TerminatingOrFailed")
    for rule in each(part(spec, "podFailurePolicy"), "rules"):
        for pattern in each(rule, "onPodConditions"):
            fill(pattern, "status", "True")
    pods.template(made(spec, "template"))


def cron_job(obj: Object) -> None:
    """Fill in a CronJob; of its template only the pod's, as the rest is filled in when a Job is made of it."""
    spec = made(obj, "spec")
    fill(spec, "concurrencyPolicy", "Allow")
    fill(spec, "suspend", False)
    fill(spec, "successfulJobsHistoryLimit", 3)
    fill(spec, "failedJobsHistoryLimit", 1)
    template = made(spec, "jobTemplate")
    fill(template, "metadata", {})
    pods.template(made(made(template, "spec"), "template"))


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {kinds.JOBS: job, kinds.CRONJOBS: cron_job}
