"""What the paper compares and no plain run uses: other signals of the regime, other timestep distributions, block
structure. `segue.stage.policy` alone brings them into the method.
"""
