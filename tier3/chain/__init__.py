"""`nox -s chain`: from the commit to an image that was proven in containers; `python -m tier3.chain` is the program.

`steps` is the chain, `place` owns what it makes in the Docker engine and removes all of it, `builds` calls the session
`build`, `pod` says how Kubernetes would run the images, `servers` puts the servers of `tier3.stack` into containers,
`accounts` has the test-runner's rights at them, `token_reviews` stands in for Kubernetes' API. Nothing of this ships.
"""
