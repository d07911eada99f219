"""What the API's objects are: kinds, schema, selectors, quantities, patches, defaults and checks, bodies in protobuf.

Everything here is a function from values to values: no clock, no store, no request, and no file but the schema's own.
It knows one object at a time; what takes a second one (a quota, a free address, a role) belongs to `api/`.
"""
