"""What the worker is compared with: the least that any Python worker on Kafka does, and the most obvious one.

Each is a process, `python -m tests.benchmarks.contenders.<name> '<Job as JSON>'`, that runs until it is killed. None
imports anything of `pipeline`: a floor that shared its code would move with it.
"""
