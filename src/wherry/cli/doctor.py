"""`wherry doctor`."""

import sys
from collections.abc import Sequence

from wherry.cli.args import Option, Spec, parse
from wherry.cli.instances import ROOT

DOCTOR = Spec(
    "doctor",
    "Check this machine. Each line says what is there; what is not right says why it matters and the exact fix.",
    "[-o json] [--root DIR]",
    (ROOT, Option("output", "form of the answer", "o", default="text", choices=("text", "json"))),
)


def doctor_command(argv: Sequence[str]) -> int:
    """Print all findings; 1 when something is a FAIL."""
    args = parse(DOCTOR, argv)
    from wherry.daemon.doctor import Grade, examine
    from wherry.daemon.instance import Instance

    findings = examine(Instance.at(args.text("root")))
    if args.text("output") == "json":
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings)).decode() + "\n")
    else:
        for each in findings:
            sys.stdout.write(f"{each.grade.value:<5} {each.name:<14} {each.seen}\n")
            if each.grade is not Grade.PASS:
                sys.stdout.write(f"      why: {each.why}\n      fix: {each.fix}\n")
    return 1 if any(each.grade is Grade.FAIL for each in findings) else 0
