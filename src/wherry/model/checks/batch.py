"""Checks of Jobs and CronJobs."""

import re
from typing import Any

from wherry.errors import Cause
from wherry.model.checks import pods
from wherry.model.checks.problems import Object, Problems, part

_CRON_NAME = 52
_MODES = ("Indexed", "NonIndexed")
_PARTS = (("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7))
_WORDS = {
    3: ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    4: ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
_NICKNAMES = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def job(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Job; its template and the number of its completions stay."""
    found = Problems()
    spec = part(obj, "spec")
    _check_spec(found, "spec", spec)
    if old is not None:
        before = part(old, "spec")
        if spec.get("completions") != before.get("completions") and spec.get("completionMode") != "Indexed":
            found.unchanged("spec.completions", spec.get("completions"), before.get("completions"))
        for field in ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"):
            found.unchanged(f"spec.{field}", spec.get(field), before.get(field))
        found.unchanged("spec.template", _fixed(spec, before), _fixed(before, before))
    return found.causes


def _fixed(spec: Object, old: Object) -> Any:
    """What of a Job's template no update may change: of a suspended one the directions to the scheduler may."""
    template = part(spec, "template")
    if not old.get("suspend"):
        return template
    inner = {
        name: value
        for name, value in part(template, "spec").items()
        if name not in ("nodeSelector", "tolerations", "affinity", "schedulingGates", "containers", "initContainers")
    }
    return {"spec": inner}


def cron_job(obj: Object, old: Object | None) -> list[Cause]:
    """Check a CronJob: its schedule, and the Job that it makes."""
    found = Problems()
    name = part(obj, "metadata").get("name") or ""
    if len(name) > _CRON_NAME:
        found.invalid("metadata.name", name, f"must be no more than {_CRON_NAME} characters")
    spec = part(obj, "spec")
    schedule = spec.get("schedule") or ""
    if not schedule:
        found.required("spec.schedule")
    else:
        wrong = schedule_problem(schedule)
        if wrong:
            found.invalid("spec.schedule", schedule, wrong)
        if "TZ" in schedule:
            found.invalid("spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
    zone = spec.get("timeZone")
    if zone is not None and not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", zone):
        found.invalid("spec.timeZone", zone, f"unknown time zone {zone}")
    found.one_of("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
    found.not_negative("spec", spec, "startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit")
    inner = part(part(spec, "jobTemplate"), "spec")
    if inner.get("manualSelector"):
        found.unsupported("spec.jobTemplate.spec.manualSelector", True, ("nil", "false"))
    _check_spec(found, "spec.jobTemplate.spec", inner)
    return found.causes


def _check_spec(found: Problems, path: str, spec: Object) -> None:
    found.not_negative(
        path,
        spec,
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    )
    mode = spec.get("completionMode")
    found.one_of(f"{path}.completionMode", mode, _MODES, required=False)
    if mode == "Indexed" and spec.get("completions") is None:
        found.required(f"{path}.completions", "when completion mode is Indexed")
    if mode != "Indexed":
        for field in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(field) is not None:
                found.invalid(f"{path}.{field}", spec[field], "requires indexed completion mode")
    found.one_of(
        f"{path}.podReplacementPolicy",
        spec.get("podReplacementPolicy"),
        ("TerminatingOrFailed", "Failed"),
        required=False,
    )
    template = part(spec, "template")
    pods.check_template(found, f"{path}.template", template)
    policy = part(template, "spec").get("restartPolicy")
    if policy == "Always":
        found.required(f"{path}.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"')
    if isinstance(spec.get("podFailurePolicy"), dict) and policy == "OnFailure":
        found.invalid(
            f"{path}.template.spec.restartPolicy",
            policy,
            'only "Never" is supported when podFailurePolicy is specified',
        )


def schedule_problem(text: str) -> str:
    """Say what is wrong with a cron schedule, "" when it can be read.

    Five fields (minute, hour, day of month, month, day of week) of numbers, ranges, lists and steps, or a nickname.
    Source: crontab(5), and the library that upstream reads schedules with.
    """
    if text.startswith("@"):
        is_known = text in _NICKNAMES or bool(re.fullmatch(r"@every \d+(\.\d+)?(h|m|s)(\d+(m|s))*", text))
        return "" if is_known else f"unrecognized descriptor: {text}"
    fields = text.split()
    if len(fields) != len(_PARTS):
        return f"expected exactly {len(_PARTS)} fields, found {len(fields)}: [{' '.join(fields)}]"
    for place, field in enumerate(fields):
        for one in field.split(","):
            wrong = _range_problem(one, place)
            if wrong:
                return wrong
    return ""


def _range_problem(text: str, place: int) -> str:
    name, least, most = _PARTS[place]
    span, slash, step = text.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return f"failed to parse int from {step}: the step of the {name} must be a positive number: {text}"
    if span in ("*", "?"):
        return ""
    ends = span.split("-")
    if len(ends) > 2:
        return f"too many hyphens: {text}"
    numbers: list[int] = []
    for end in ends:
        words = _WORDS.get(place, ())
        if end.lower() in words:
            numbers.append(words.index(end.lower()) + (1 if place == 3 else 0))
        elif end.isdecimal() and end.isascii():
            numbers.append(int(end))
        else:
            return f'failed to parse int from {end}: strconv.Atoi: parsing "{end}": invalid syntax'
    if numbers[0] < least:
        return f"beginning of range ({numbers[0]}) below minimum ({least}): {text}"
    if numbers[-1] > most:
        return f"end of range ({numbers[-1]}) above maximum ({most}): {text}"
    if numbers[0] > numbers[-1]:
        return f"beginning of range ({numbers[0]}) beyond end of range ({numbers[-1]}): {text}"
    return ""
