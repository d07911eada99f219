"""The network of one machine's pods: addresses, links, routes, services, DNS, and the claims that keep instances apart.

Values in (`types.Service`, `dns.DnsService`), kernel state out: what to change is computed by pure functions, done by
`host/`. It knows no API objects, and opens no port but DNS on addresses it was given. IPv4 only.
"""
