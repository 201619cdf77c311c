"""The benchmark: `make bench`. Real servers, a node that is never the limit, peers beside the product, and clocks that
belong to none of them.
"""
