"""The hub's HTTP API, Kubernetes-shaped: one module per verb, `app.build_app` puts them on their paths.

Lives here: requests in, resources through `hub.objects`, answers out, and who may ask (`access`). Must not live here:
decisions on rollouts (`core`, `hub.controllers`), keys of the store (`hub.objects`), TLS (`hub.listener`).
"""
