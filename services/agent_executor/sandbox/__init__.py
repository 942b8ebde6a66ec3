"""A definition's tool scripts, run in confined child processes.

`pool` is what the service knows of it: one `Sandbox`, of which each job gets a `Box`. A box has one child, which serves
its job and no other. `zygote` is the program that children are forked from, `child` what they run, `confine` what they
give up before the first line of a script. What stands here is imported by children too, so it imports nothing.
"""
