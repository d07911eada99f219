"""The API server: Kubernetes' REST API over one `Store`.

It authenticates, authorises, admits, validates and keeps objects, and tells watchers. It runs nothing, schedules nothing
and reconciles nothing: that is what its clients do. What belongs to a node (logs, exec) it authorises and passes on.

One walk: `Api.handle` finds the user (`authenticate`), `Api.serve` reads what the path asks for (`target`), asks `authorize`,
and hands over to one function of `reads`, `watches`, `writes`, `deletes`, `subresources` or `reviews`. Reads never touch the
store: `cache` follows it and keeps bytes. Writes go through `admission` and end in one compare-and-set, whose note says who,
when and what. Errors are `wherry.errors` everywhere, and become Status objects in `errors` alone.
"""
