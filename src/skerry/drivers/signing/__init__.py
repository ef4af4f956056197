"""Signatures of model packages: Sigstore bundles as OpenSSF Model Signing writes them.

`bundle` verifies one with nothing but `cryptography`, so a device can; `statement` reads its bytes and `certificates`
judges its chain; `policy` does so for all that a policy trusts. `package` knows which files of a package are signed;
`signer` wraps the `model-signing` library (the extra `skerry[signing]`). Must not live here: who may sign what
(`core`), what is printed (`cli`).
"""
