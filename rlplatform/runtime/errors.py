"""What a policy refuses: a bundle that is not whole, and an observation that it was not made for."""


class BundleError(ValueError):
    """The folder is no bundle, a file of it is missing, or its bytes are not those that were verified."""


class ObservationError(ValueError):
    """The observation is not of the shape and dtype that the policy was made for, or is not finite."""
