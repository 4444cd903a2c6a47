"""What the method is compared with: other signals of the regime, other timestep distributions, block structure.

`segue.stage.policy` alone brings them into a run.
"""
