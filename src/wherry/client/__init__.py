"""The API as its clients see it: requests, informers of projections, work queues, elections, events.

It carries requests of one identity to an API server, in process or by HTTP, and keeps small typed views of what is
there. It is not the server (`api/`), decides nothing (`controllers/`, `scheduler/`) and holds no truth of its own.
"""
