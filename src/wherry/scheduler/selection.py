"""Node selectors and affinity: which nodes a pod may and would like to be on. Pure."""

from collections.abc import Mapping

from wherry.scheduler.objects import Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec


def fits_selection(spec: PodSpec, node: Node) -> bool:
    """Whether a node meets a pod's node selector and required node affinity."""
    labels = node.metadata.labels
    if not spec.node_selector.items() <= labels.items():
        return False
    required = spec.affinity.node_affinity.required_during_scheduling_ignored_during_execution
    return required is None or any(term_holds(term, node) for term in required.node_selector_terms)


def preference(spec: PodSpec, node: Node) -> int:
    """The sum of the weights of preferred terms that a node meets."""
    preferred = spec.affinity.node_affinity.preferred_during_scheduling_ignored_during_execution
    return sum(term.weight for term in preferred if term_holds(term.preference, node))


def term_holds(term: NodeSelectorTerm, node: Node) -> bool:
    """Whether all conditions of a term hold; a term without conditions holds for no node."""
    if not term.match_expressions and not term.match_fields:
        return False
    fields = {"metadata.name": node.metadata.name}
    return all(_holds(one, node.metadata.labels) for one in term.match_expressions) and all(
        _holds(one, fields) for one in term.match_fields
    )


def _holds(one: NodeSelectorRequirement, values: Mapping[str, str]) -> bool:
    value = values.get(one.key)
    match one.operator:
        case "In":
            return value in one.values
        case "NotIn":
            return value not in one.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            try:
                number, bound = int(value or ""), int(one.values[0])
            except (ValueError, IndexError):
                return False
            return number > bound if one.operator == "Gt" else number < bound
        case _:
            return False
