"""The whole system on one machine, without Docker, Redis or Kubernetes: for ``local``, ``demo`` and the tests only.

``redis`` and ``handle`` are what the rest of Ottoscaler sees: each starts one server in a process of its own, tied to
ours by ``guard``. Behind ``handle`` run the Kubernetes API (``server`` -> ``api`` -> ``store``) and one node
(``node``) that turns pods into processes.
"""
