"""The inference server of one model on one device, speaking the Open Inference Protocol v2.

A program of its own (`python -m skerry.serve`), never imported by the agent or the hub. Read `dataplane` first: what
the server can do, with no transport in it. Around it: `protocol` and `tensors` (the wire form), `signature` (the
checks), `rest` (paths and statuses), `http1` (connections), `engines` (what executes a model), `worker` (where),
`metrics`, `limits` (every bound), `app` (settings and life).

Must not live here: which model to serve and when (the agent decides), and anything heavy at import: start-up time and
resident memory are this program's price on every device.
"""
