"""Which of our forms a client accepts: the object, a Table, or its metadata alone."""

from dataclasses import dataclass
from typing import Literal

from wherry.errors import BadRequest, NotAcceptable

FormName = Literal["object", "table", "partial"]


@dataclass(frozen=True, slots=True)
class Form:
    """How to show what was found. `version` is the meta.k8s.io version of a Table or PartialObjectMetadata.

    `include` is what a Table's rows carry: Metadata, Object or None.
    """

    name: FormName = "object"
    version: str = "v1"
    include: str = "Metadata"

    @property
    def is_object(self) -> bool:
        """Whether objects go out as they are kept."""
        return self.name == "object"


OBJECT = Form()
_AS: dict[str, FormName] = {
    "Table": "table",
    "PartialObjectMetadata": "partial",
    "PartialObjectMetadataList": "partial",
}


def form_of(accept: str | None, include: str | None = None, *, convertible: bool = True) -> Form:
    """Choose the first form of an Accept header that we make; JSON when there is no header.

    Raises NotAcceptable, naming what can be had, when there is none. `convertible` is False where Tables and partial
    metadata do not exist. Source: Kubernetes API concepts, "Receiving resources as Tables".
    """
    if include not in (None, "", "Metadata", "Object", "None"):
        raise BadRequest(f"includeObject {include!r}: write Metadata, Object or None")
    if not accept or accept == "*/*" or accept == "application/json":
        return OBJECT
    for entry in accept.split(","):
        media, *pairs = (part.strip() for part in entry.split(";"))
        if media.lower() not in ("application/json", "application/*", "*/*"):
            continue
        params = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        wanted = params.get("as")
        if wanted is None:
            return OBJECT
        name = _AS.get(wanted)
        if convertible and name and params.get("g") == "meta.k8s.io" and params.get("v") in ("v1", "v1beta1"):
            return Form(name, params["v"], include or "Metadata")
    extra = ", application/json;as=Table;v=v1;g=meta.k8s.io" if convertible else ""
    raise NotAcceptable(f"only the following media types are accepted: application/json{extra}")
