"""What a policy refuses: a bundle that is not whole, and an observation or a mask that it was not made for."""


class BundleError(ValueError):
    """The folder is no bundle, a file of it is missing, or its bytes are not those that were verified."""


class ObservationError(ValueError):
    """The observation is not of the shape and dtype that the policy was made for, or is not finite.

    Or the action mask beside it is missing, is not of the policy's shape, or allows nothing; or the state beside it is
    missing, is not of the policy's size, or belongs to no policy that remembers.
    """
