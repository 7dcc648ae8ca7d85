"""Versions of a workdir's model: which is in use, what a run starts from and is judged against, how one is published.

`registry` (registry.json, the truth) -> `incumbents` (the version that a run starts from and is judged against) ->
`publication` (registering, rolling back) -> `model_registry` (MLflow's, which follows); `checksums` vouch for bundles.
"""
