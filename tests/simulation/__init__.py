"""The flow itself, several processes of it, in a world of faults and virtual time, on one thread.

Nothing here models the program: the registry, ledger, workers, control, lease, reconciler, watch and reader are the
ones that run in production, carried on one step at a time, over the full fakes. Each request to Redis or to the API
server is a place where everything else may happen: that is how one thread shows what many threads and processes can
come to.
"""
