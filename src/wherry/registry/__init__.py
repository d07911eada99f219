"""The registry: OCI distribution over this machine's content store.

It keeps which repository has which manifests, blobs and tags; the bytes are the content room's, shared with engine and
builder. It is not where images run or are built.
"""
